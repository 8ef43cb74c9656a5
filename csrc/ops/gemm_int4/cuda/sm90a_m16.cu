#include "ops/gemm_int4/cuda/sm90a.cuh"

namespace lamina::gemm_int4 {

CudaKernel gemm_int4_sm90a_m16() {
  return sm90a_kernel<Sm90aConfig{16, 1, 4, 6}>("gemm_int4_sm90a_m16");
}

}  // namespace lamina::gemm_int4
