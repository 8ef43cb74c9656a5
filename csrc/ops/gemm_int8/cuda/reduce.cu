// gemm_int8 / reduce: gemm/cuda/reduce.cuh in int32, in int64 where k > kMaxExactK, in f32 with scales along k.
#include "gemm/cuda/integer_scaler.cuh"
#include "gemm/cuda/reduce.cuh"
#include "ops/gemm_int8/cuda/run.h"

namespace lamina::gemm_int8 {
namespace {

struct Op {
  static constexpr const char* kName = "gemm_int8_reduce";

  LAMINA_DEVICE static void reduce(const Params& p, const Split& split, int64_t i, int64_t j) {
    if (p.problem.is_grouped()) {
      reduce_columns<Unscaled, float, float>(p, split, k_chunks(p.problem), i, j);
    } else if (p.problem.k > kMaxExactK) {
      reduce_columns<IntegerScaler, int32_t, int64_t>(p, split, split.count, i, j);
    } else {
      reduce_columns<IntegerScaler, int32_t, int32_t>(p, split, split.count, i, j);
    }
  }
};

}  // namespace

Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream) {
  return Reduce<Params, Op>::launch(params, split, max_blocks, stream);
}

}  // namespace lamina::gemm_int8
