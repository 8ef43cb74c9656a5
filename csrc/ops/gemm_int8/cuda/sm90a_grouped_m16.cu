#include "ops/gemm_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_grouped_sm90a_m16() {
  return Sm90a<Sm90aConfig{16, 1, 1, 12, true}>::kernel("gemm_int8_grouped_sm90a_m16");
}

}  // namespace lamina::gemm_int8
