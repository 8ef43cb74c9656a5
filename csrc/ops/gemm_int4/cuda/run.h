// gemm_int4 on a GPU.
#pragma once

#include "gemm/cuda/plan.h"
#include "ops/gemm_int4/gemm_int4.h"

namespace lamina::gemm_int4 {

// Every CUDA kernel in this build.
const CudaOp& cuda_op();

// Each k chunk has a partial sum of its own.
constexpr int64_t k_chunks(const Problem& p) { return ceil_div(p.k, kChunkK); }
constexpr KRule k_rule(const Problem&) { return {kChunkK, true}; }

// An error for dtypes that the CUDA kernels cannot take, although the CPU kernels can.
Status check_cuda(const Params& params);

// Launches the plan; workspace: plan.partial_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

// Reduces the partial sums to out.
Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream);

}  // namespace lamina::gemm_int4
