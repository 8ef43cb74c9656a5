#include "ops/gemm_int4_int8/cuda/sm80.cuh"

namespace lamina::gemm_int4_int8 {

CudaKernel gemm_int4_int8_sm80_m16() {
  return sm80_kernel<Sm80Config{16, 128, 1, 8, 6, 3}>("gemm_int4_int8_sm80_m16");
}

}  // namespace lamina::gemm_int4_int8
