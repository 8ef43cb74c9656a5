// gemm_int4 on a GPU.
#pragma once

#include "block/row_alignment.h"
#include "gemm/cuda/plan.h"
#include "ops/gemm_int4/gemm_int4.h"

namespace lamina::gemm_int4 {

// Every CUDA kernel in this build.
const CudaOp& cuda_op();

// Each k chunk has a partial sum of its own.
constexpr int64_t k_chunks(const Problem& p) { return ceil_div(p.k, kChunkK); }
constexpr KRule k_rule(const Problem&) { return {kChunkK, true}; }

// Bytes of a row of a that one copy moves: 16, 4 or 1; 1 for a gather.
inline int a_copy_bytes(const Params& params) {
  if (params.perm.is_given()) return 1;
  const Problem& p = params.problem;
  return copy_bytes_of(row_alignment(params.a, p.m, p.k * 2, params.a_stride * 2));
}

// CudaKernel::launch where a kernel exists for each dtype of a.
template <class KernelF16, class KernelBF16>
Status launch_by_dtype(const void* erased, const Split& split, int max_blocks, void* stream) {
  const Params& params = *static_cast<const Params*>(erased);
  const auto start = params.a_dtype == DType::kF16 ? &KernelF16::start : &KernelBF16::start;
  return start(params, split, max_blocks, stream);
}

// An error for dtypes that the CUDA kernels cannot take, although the CPU kernels can.
Status check_cuda(const Params& params);

// Launches the plan; workspace: plan.partial_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

// Reduces the partial sums to out.
Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream);

}  // namespace lamina::gemm_int4
