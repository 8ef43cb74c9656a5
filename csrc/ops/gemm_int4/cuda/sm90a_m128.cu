#include "ops/gemm_int4/cuda/sm90a.cuh"

namespace lamina::gemm_int4 {

CudaKernel gemm_int4_sm90a_m128() {
  return sm90a_kernel<Sm90aConfig{128, 2, 1, 6}>("gemm_int4_sm90a_m128");
}

}  // namespace lamina::gemm_int4
