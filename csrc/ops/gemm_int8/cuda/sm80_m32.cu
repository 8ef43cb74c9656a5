#include "ops/gemm_int8/cuda/sm80.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_sm80_m32() {
  return Sm80<Sm80Config{32, 64, 1, 2, 2, 4, 3, 2}>::kernel("gemm_int8_sm80_m32");
}

}  // namespace lamina::gemm_int8
