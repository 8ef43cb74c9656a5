// matmul_sparse24 / sm80: float_sm80.cuh on values.
//
// Budget     regs <= 255; 0 spills; 0 bank conflicts
//            requires SASS: HMMA.SP, LDGSTS, LDSM
#pragma once

#include "ops/matmul_sparse24/cuda/float_sm80.cuh"

namespace lamina::matmul_sparse24 {

using Sm80Config = HalfSm80Config;

template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  return half_sm80_kernel<kConfig, ValuesSm80>(name);
}

}  // namespace lamina::matmul_sparse24
