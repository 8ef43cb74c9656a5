// gemm_int4_int8 / reduce: ops/gemm_int8/cuda/reduce.cuh, in f32.
#include "ops/gemm_int4_int8/cuda/kernel.h"
#include "ops/gemm_int8/cuda/reduce.cuh"

namespace lamina::gemm_int4_int8 {
namespace {

struct Op {
  static constexpr const char* kName = "gemm_int4_int8_reduce";

  LAMINA_DEVICE static void reduce(const CudaParams& p, const Split& split, int64_t i, int64_t j) {
    gemm_int8::reduce_columns<float, float>(p, split, slabs(p.problem), i, j);
  }
};

}  // namespace

Status launch_reduce(const CudaParams& params, const Split& split, int max_blocks, void* stream) {
  return gemm_int8::Reduce<CudaParams, Op>::launch(params, split, max_blocks, stream);
}

}  // namespace lamina::gemm_int4_int8
