#include "ops/gemm_int4_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int4_int8 {

CudaKernel gemm_int4_int8_sm90a_m32() {
  return sm90a_kernel<Sm90aConfig{32, 2, 2, 9}>("gemm_int4_int8_sm90a_m32");
}

}  // namespace lamina::gemm_int4_int8
