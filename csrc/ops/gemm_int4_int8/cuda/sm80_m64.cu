#include "ops/gemm_int4_int8/cuda/sm80.cuh"

namespace lamina::gemm_int4_int8 {

CudaKernel gemm_int4_int8_sm80_m64() {
  return sm80_kernel<Sm80Config{64, 128, 1, 4, 4, 2}>("gemm_int4_int8_sm80_m64");
}

}  // namespace lamina::gemm_int4_int8
