// matmul_sparse24_int4 / sm90a: float_sm90a.cuh on codes.
//
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: HGMMA.SP, UTMALDG, LDGSTS
#pragma once

#include "ops/matmul_sparse24/cuda/float_sm90a.cuh"

namespace lamina::matmul_sparse24 {

using Int4Sm90aConfig = HalfSm90aConfig;

template <Int4Sm90aConfig kConfig>
CudaKernel int4_sm90a_kernel(const char* name) {
  return half_sm90a_kernel<kConfig, CodesSm90a>(name);
}

}  // namespace lamina::matmul_sparse24
