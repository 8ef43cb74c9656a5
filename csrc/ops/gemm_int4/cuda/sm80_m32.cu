#include "ops/gemm_int4/cuda/sm80.cuh"

namespace lamina::gemm_int4 {

CudaKernel gemm_int4_sm80_m32() {
  return sm80_kernel<Sm80Config{32, 128, 1, 8, 1, 4, 2}>("gemm_int4_sm80_m32");
}

}  // namespace lamina::gemm_int4
