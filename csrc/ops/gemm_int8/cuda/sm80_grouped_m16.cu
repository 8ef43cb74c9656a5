#include "ops/gemm_int8/cuda/sm80.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_grouped_sm80_m16() {
  return Sm80<Sm80Config{16, 128, 1, 4, 1, 2, 3, 2, true}>::kernel("gemm_int8_grouped_sm80_m16");
}

}  // namespace lamina::gemm_int8
