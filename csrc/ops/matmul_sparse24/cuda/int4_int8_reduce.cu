// matmul_sparse24_int4_int8 / reduce: gemm/cuda/int4_int8_reduce.cuh.
#include "gemm/cuda/int4_int8_reduce.cuh"
#include "ops/matmul_sparse24/cuda/run.h"

namespace lamina::matmul_sparse24 {

Status launch_int4_int8_reduce(const Int4Int8Operands& params, const Split& split, int max_blocks,
                               void* stream) {
  return Reduce<Int4Int8Operands, Int4Int8Reduce<true>>::launch(params, split, max_blocks, stream);
}

}  // namespace lamina::matmul_sparse24
