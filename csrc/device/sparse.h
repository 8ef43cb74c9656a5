// device.h, and the products with a 2:4 sparse operand. Kernels without such an operand do not include these headers,
// because they are long to compile.
#pragma once

#include "device/device.h"

#if defined(__CUDACC__)
#include "device/ptx/mma_sparse.cuh"
#include "device/ptx/wgmma_sparse.cuh"
#else
#include "device/emu/mma_sparse.h"
#include "device/emu/wgmma_sparse.h"
#endif
