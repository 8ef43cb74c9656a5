// The use that kernels on f16 and bf16 activations make of the Params of their op.
#pragma once

#include "base/numeric.h"
#include "block/row_alignment.h"
#include "gemm/cuda/kernel.h"

namespace lamina::gemm {

// Bytes of a row of a that one copy moves: 16, 4 or 1; 1 for a gather.
int a_copy_bytes(const auto& params) {
  if (params.perm.is_given()) return 1;
  const Problem& p = params.problem;
  return copy_bytes_of(row_alignment(params.a, p.m, p.k * 2, params.a_stride * 2));
}

// CudaKernel::launch where a kernel exists for each dtype of a.
template <class KernelF16, class KernelBF16>
Status launch_by_dtype(const void* erased, const Split& split, int max_blocks, void* stream) {
  const auto& params = *static_cast<const typename KernelF16::Params*>(erased);
  const auto start = params.a_dtype == DType::kF16 ? &KernelF16::start : &KernelBF16::start;
  return start(params, split, max_blocks, stream);
}

}  // namespace lamina::gemm
