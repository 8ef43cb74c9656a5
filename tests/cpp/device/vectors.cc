// Golden vectors of every function in csrc/device, written from the text of the PTX ISA and from nothing in this
// repository, because they check layout/fragment.h and the emulator. They run on the emulator with the other tests
// and, compiled with nvcc -x cu and main.cc, on a GPU: bench/gpu_check.py.
#include "approx_vectors.h"
#include "convert_vectors.h"
#include "copy_vectors.h"
#include "half_vectors.h"
#include "launch_vectors.h"
#include "ldmatrix_vectors.h"
#include "mma_sparse_vectors.h"
#include "mma_vectors.h"
#include "shuffle_vectors.h"
#include "sync_vectors.h"
