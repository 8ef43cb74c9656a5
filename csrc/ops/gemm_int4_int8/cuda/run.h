// gemm_int4_int8 on a GPU.
#pragma once

#include "gemm/cuda/int4_int8.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"

namespace lamina::gemm_int4_int8 {

using CudaParams = Int4Int8Operands;

constexpr KRule k_rule(const Problem& p) { return int4_int8_k_rule(p); }

// Every CUDA kernel in this build.
const CudaOp& cuda_op();

// The bytes of the packed activations and, where k is split, of the partial sums.
int64_t workspace_bytes(const Problem& problem, const CudaPlan& plan);

// Launches the plan; workspace: workspace_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

// Packs params.a, or quantises and packs params.floats in its place.
Status launch_pack_activations(const Params& params, const PackedActivations& to, int max_blocks,
                               void* stream);
// Reduces the partial sums to out.
Status launch_reduce(const CudaParams& params, const Split& split, int max_blocks, void* stream);

}  // namespace lamina::gemm_int4_int8
