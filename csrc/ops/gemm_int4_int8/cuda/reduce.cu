// gemm_int4_int8 / reduce: gemm/cuda/int4_int8_reduce.cuh.
#include "gemm/cuda/int4_int8_reduce.cuh"
#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::gemm_int4_int8 {

Status launch_reduce(const CudaParams& params, const Split& split, int max_blocks, void* stream) {
  return Reduce<CudaParams, Int4Int8Reduce<false>>::launch(params, split, max_blocks, stream);
}

}  // namespace lamina::gemm_int4_int8
