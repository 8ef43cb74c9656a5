#include "ops/gemm_int8/cuda/sm80.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_grouped_sm80_m64() {
  return Sm80<Sm80Config{64, 64, 2, 2, 1, 2, 3, 3, true}>::kernel("gemm_int8_grouped_sm80_m64");
}

}  // namespace lamina::gemm_int8
