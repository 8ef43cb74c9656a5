#include "ops/quantize_int8/cuda/launch.h"

namespace lamina::quantize_int8 {

Status run_cuda(const Params& params, int max_blocks, void* stream) {
  constexpr int64_t kMostRows = (int64_t{1} << 31) - 1;
  if (params.m > kMostRows)
    return Status::error("quantize_int8: m = ", params.m, "; on CUDA at most ", kMostRows);
  return params.m == 0 ? Status::ok() : launch_rows(params, max_blocks, stream);
}

}  // namespace lamina::quantize_int8
