// gemm_int4_int8 on a GPU.
#pragma once

#include "ops/gemm_int4_int8/cuda/kernel.h"

namespace lamina::gemm_int4_int8 {

// Every CUDA kernel in this build.
const CudaOp& cuda_op();

// The bytes of the packed activations and, where k is split, of the partial sums.
int64_t workspace_bytes(const Problem& problem, const CudaPlan& plan);

// Launches the plan; workspace: workspace_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

}  // namespace lamina::gemm_int4_int8
