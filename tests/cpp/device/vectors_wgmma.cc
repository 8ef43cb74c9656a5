// Golden vectors of the warpgroup's products, stmatrix, elect and setmaxnreg, written from the text of
// the PTX ISA as those in vectors.cc. Apart from them because they need sm_90a.
#include "stmatrix_vectors.h"
#include "wgmma_half_vectors.h"
#include "wgmma_int8_vectors.h"
