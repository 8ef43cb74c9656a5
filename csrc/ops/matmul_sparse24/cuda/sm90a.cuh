// matmul_sparse24 / sm90a: float_sm90a.cuh on values.
//
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: HGMMA.SP, UTMALDG, LDGSTS
#pragma once

#include "ops/matmul_sparse24/cuda/float_sm90a.cuh"

namespace lamina::matmul_sparse24 {

using Sm90aConfig = HalfSm90aConfig;

template <Sm90aConfig kConfig>
CudaKernel sm90a_kernel(const char* name) {
  return half_sm90a_kernel<kConfig, ValuesSm90a>(name);
}

}  // namespace lamina::matmul_sparse24
