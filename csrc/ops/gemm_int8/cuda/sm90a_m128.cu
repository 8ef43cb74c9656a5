#include "ops/gemm_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_sm90a_m128() {
  return Sm90a<Sm90aConfig{128, 2, 2, 6}>::kernel("gemm_int8_sm90a_m128");
}

}  // namespace lamina::gemm_int8
