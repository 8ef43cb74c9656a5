#include "ops/gemm_int4_int8/cuda/sm80.cuh"

namespace lamina::gemm_int4_int8 {

CudaKernel gemm_int4_int8_sm80_m128() {
  return sm80_kernel<Sm80Config{128, 128, 2, 4, 4, 1}>("gemm_int4_int8_sm80_m128");
}

}  // namespace lamina::gemm_int4_int8
