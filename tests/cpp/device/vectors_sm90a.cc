// As vectors.cc, of what sm_90a has: a program of its own, since it takes such a GPU.
#include "cluster_vectors.h"
#include "mbarrier_vectors.h"
#include "tma_vectors.h"
