#include "ops/gemm_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_grouped_sm90a_m128() {
  return Sm90a<Sm90aConfig{128, 2, 2, 4, true}>::kernel("gemm_int8_grouped_sm90a_m128");
}

}  // namespace lamina::gemm_int8
