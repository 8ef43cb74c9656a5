#include "ops/gemm_int4_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int4_int8 {

CudaKernel gemm_int4_int8_sm90a_m128() {
  return sm90a_kernel<Sm90aConfig{128, 2, 1, 8}>("gemm_int4_int8_sm90a_m128");
}

}  // namespace lamina::gemm_int4_int8
