#include "ops/gemm_int8/cuda/sm80.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_sm80_m128() {
  return Sm80<Sm80Config{128, 128, 2, 4, 1, 2, 3, 1}>::kernel("gemm_int8_sm80_m128");
}

}  // namespace lamina::gemm_int8
