#include "ops/gemm_int4/cuda/sm80.cuh"

namespace lamina::gemm_int4 {

CudaKernel gemm_int4_sm80_m16() {
  return sm80_kernel<Sm80Config{16, 128, 1, 8, 2, 4, 3}>("gemm_int4_sm80_m16");
}

}  // namespace lamina::gemm_int4
