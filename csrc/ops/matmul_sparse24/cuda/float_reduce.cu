// matmul_sparse24 and matmul_sparse24_int4 / reduce: gemm/cuda/reduce.cuh, in f32.
#include "gemm/cuda/reduce.cuh"
#include "ops/matmul_sparse24/cuda/run.h"

namespace lamina::matmul_sparse24 {
namespace {

struct Op {
  static constexpr const char* kName = "matmul_sparse24_reduce";

  LAMINA_DEVICE static void reduce(const HalfParams& p, const Split& split, int64_t i, int64_t j) {
    reduce_columns<Unscaled, float, float>(p, split, k_chunks(p.problem), i, j);
  }
};

}  // namespace

Status launch_float_reduce(const HalfParams& params, const Split& split, int max_blocks,
                           void* stream) {
  return Reduce<HalfParams, Op>::launch(params, split, max_blocks, stream);
}

}  // namespace lamina::matmul_sparse24
