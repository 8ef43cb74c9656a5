// matmul_sparse24_int8 / reduce: gemm/cuda/reduce.cuh in int32, in int64 where k > kMaxExactK.
#include "gemm/cuda/integer_scaler.cuh"
#include "gemm/cuda/reduce.cuh"
#include "ops/matmul_sparse24/cuda/run.h"

namespace lamina::matmul_sparse24 {
namespace {

struct Op {
  static constexpr const char* kName = "matmul_sparse24_int8_reduce";

  LAMINA_DEVICE static void reduce(const Int8Params& p, const Split& split, int64_t i, int64_t j) {
    if (p.problem.k > kMaxExactK) {
      reduce_columns<IntegerScaler, int32_t, int64_t>(p, split, split.count, i, j);
    } else {
      reduce_columns<IntegerScaler, int32_t, int32_t>(p, split, split.count, i, j);
    }
  }
};

}  // namespace

Status launch_int8_reduce(const Int8Params& params, const Split& split, int max_blocks,
                          void* stream) {
  return Reduce<Int8Params, Op>::launch(params, split, max_blocks, stream);
}

}  // namespace lamina::matmul_sparse24
