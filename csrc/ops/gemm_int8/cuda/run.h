// gemm_int8 and gemm_int8_quantized on a GPU.
#pragma once

#include "block/row_alignment.h"
#include "gemm/cuda/plan.h"
#include "ops/gemm_int8/gemm_int8.h"
#include "ops/gemm_int8/quantized.h"

namespace lamina::gemm_int8 {

// Every CUDA kernel in this build for problems with scales along k (is_grouped) or without.
const CudaOp& cuda_op(bool is_grouped);

// With scales along k, partial sums are f32, one for each k chunk. Without, they are integers, one for each split.
constexpr int64_t k_chunks(const Problem& p) { return ceil_div(p.groups(), kChunkGroups); }
constexpr KRule k_rule(const Problem& p) {
  return p.is_grouped() ? KRule{kChunkGroups * kScaleGroup, true} : KRule{0, false, kMaxExactK};
}

// The alignment of the rows of a.
inline int a_alignment(const Params& p) {
  return row_alignment(p.a, p.problem.m, p.problem.k, p.a_stride);
}

// Launches the plan; workspace: plan.partial_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

// The same for gemm_int8_quantized. A static scale out of range gives its row q = 0 and scale NaN, as in quantize_int8.
Status run_quantized_cuda(const QuantizedParams& connected, const CudaPlan& plan, void* workspace,
                          void* stream);

// Reduces the partial sums to out.
Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream);
// Sets each row of q that holds kLost to 0 with scale NaN; m > 0.
Status launch_mark_nan_rows(const quantize_int8::Params& params, int max_blocks, void* stream);

}  // namespace lamina::gemm_int8
