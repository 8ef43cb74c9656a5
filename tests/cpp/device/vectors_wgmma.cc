// Golden vectors like those of vectors.cc, for wgmma, stmatrix, elect and setmaxnreg, which need sm_90a.
#include "stmatrix_vectors.h"
#include "wgmma_half_vectors.h"
#include "wgmma_int8_vectors.h"
#include "wgmma_sparse_vectors.h"
