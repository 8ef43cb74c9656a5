// As vectors.cc, of barriers, bulk copies and clusters. Apart from them because they need sm_90a.
#include "cluster_vectors.h"
#include "mbarrier_vectors.h"
#include "tma_vectors.h"
