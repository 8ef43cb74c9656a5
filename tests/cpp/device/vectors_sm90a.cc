// Golden vectors like those of vectors.cc, for barriers, bulk copies and clusters, which need sm_90a.
#include "cluster_vectors.h"
#include "mbarrier_vectors.h"
#include "tma_vectors.h"
