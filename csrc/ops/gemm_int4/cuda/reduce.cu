// gemm_int4 / reduce: gemm/cuda/reduce.cuh, in f32.
#include "gemm/cuda/reduce.cuh"
#include "ops/gemm_int4/cuda/run.h"

namespace lamina::gemm_int4 {
namespace {

struct Op {
  static constexpr const char* kName = "gemm_int4_reduce";

  LAMINA_DEVICE static void reduce(const Params& p, const Split& split, int64_t i, int64_t j) {
    reduce_columns<Unscaled, float, float>(p, split, k_chunks(p.problem), i, j);
  }
};

}  // namespace

Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream) {
  return Reduce<Params, Op>::launch(params, split, max_blocks, stream);
}

}  // namespace lamina::gemm_int4
