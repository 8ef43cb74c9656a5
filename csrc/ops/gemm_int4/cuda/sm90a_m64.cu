#include "ops/gemm_int4/cuda/sm90a.cuh"

namespace lamina::gemm_int4 {

CudaKernel gemm_int4_sm90a_m64() {
  return sm90a_kernel<Sm90aConfig{64, 2, 1, 12}>("gemm_int4_sm90a_m64");
}

}  // namespace lamina::gemm_int4
