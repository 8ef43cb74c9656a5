#include "ops/gemm_int8/cuda/sm80.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_grouped_sm80_m128() {
  return Sm80<Sm80Config{128, 64, 4, 2, 1, 2, 3, 1, true}>::kernel("gemm_int8_grouped_sm80_m128");
}

}  // namespace lamina::gemm_int8
