#include "ops/gemm_int4_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int4_int8 {

CudaKernel gemm_int4_int8_sm90a_m16() {
  return sm90a_kernel<Sm90aConfig{16, 1, 2, 10}>("gemm_int4_int8_sm90a_m16");
}

}  // namespace lamina::gemm_int4_int8
