#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::gemm_int4_int8 {

std::vector<CudaKernel> gemm_int4_int8_kernels();  // CMake writes it from kernels.inc

const CudaOp& cuda_op() {
  static const CudaOp op{"gemm_int4_int8", 1, 0.5, true, 64, gemm_int4_int8_kernels()};
  return op;
}

int64_t workspace_bytes(const Problem& p, const CudaPlan& plan) {
  return PackedActivations::bytes(p) + plan.partial_bytes(p);
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  const Problem& p = params.problem;
  if (p.m == 0 || p.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error("gemm_int4_int8: w must start at a multiple of 16 bytes");
  auto* const bytes = static_cast<std::byte*>(workspace);
  const PackedActivations packed = PackedActivations::at(bytes, p);
  const CudaParams then = CudaParams::of(params, packed);
  if (Status status = launch_pack_activations(params, packed, plan.max_blocks(), stream);
      !status.is_ok())
    return status;
  return launch_product(plan, then, bytes + PackedActivations::bytes(p), &launch_reduce, stream);
}

}  // namespace lamina::gemm_int4_int8
