#include "ops/gemm_int8/cuda/sm90a.cuh"

namespace lamina::gemm_int8 {

CudaKernel gemm_int8_sm90a_m256() {
  return Sm90a<Sm90aConfig{256, 2, 2, 4}>::kernel("gemm_int8_sm90a_m256");
}

}  // namespace lamina::gemm_int8
