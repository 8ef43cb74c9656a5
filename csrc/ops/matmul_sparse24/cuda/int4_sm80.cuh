// matmul_sparse24_int4 / sm80: float_sm80.cuh on codes.
//
// Budget     regs <= 255; 0 spills; 0 bank conflicts
//            requires SASS: HMMA.SP, LDGSTS, LDSM
#pragma once

#include "ops/matmul_sparse24/cuda/float_sm80.cuh"

namespace lamina::matmul_sparse24 {

using Int4Sm80Config = HalfSm80Config;

template <Int4Sm80Config kConfig>
CudaKernel int4_sm80_kernel(const char* name) {
  return half_sm80_kernel<kConfig, CodesSm80>(name);
}

}  // namespace lamina::matmul_sparse24
