#include "ops/gemm_int4/cuda/sm90a.cuh"

namespace lamina::gemm_int4 {

CudaKernel gemm_int4_sm90a_m32() {
  return sm90a_kernel<Sm90aConfig{32, 2, 2, 10}>("gemm_int4_sm90a_m32");
}

}  // namespace lamina::gemm_int4
