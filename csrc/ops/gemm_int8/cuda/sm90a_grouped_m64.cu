#include "ops/gemm_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_grouped_sm90a_m64() {
  return Sm90a<Sm90aConfig{64, 1, 2, 8, true}>::kernel("gemm_int8_grouped_sm90a_m64");
}

}  // namespace lamina::gemm_int8
