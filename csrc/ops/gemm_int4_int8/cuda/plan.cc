#include "ops/gemm_int4_int8/cuda/plan.h"

#include "ops/gemm_int4/plan.h"

namespace lamina::gemm_int4_int8 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m)
#define LAMINA_CUDA_KERNEL(op, name) CudaKernel op##_##name();
#include "ops/gemm_int4_int8/kernels.inc"
#undef LAMINA_CUDA_KERNEL
#undef LAMINA_CPU_KERNEL

namespace {

constexpr const char* kOp = "gemm_int4_int8";

}  // namespace

const std::vector<CudaKernel>& cuda_kernels() {
  static const std::vector<CudaKernel> all = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m)
#define LAMINA_CUDA_KERNEL(op, name) op##_##name(),
#include "ops/gemm_int4_int8/kernels.inc"
#undef LAMINA_CUDA_KERNEL
#undef LAMINA_CPU_KERNEL
  };
  return all;
}

Status check_cuda(const Problem& p, const DeviceInfo& device) {
  return gemm_int4::check_cuda(kOp, p, device);
}

CudaPlan plan_cuda(const Problem& p, const DeviceInfo& device, int max_sms, std::string_view only) {
  return {gemm_int4::plan_segments(cuda_kernels(), p, split_k(p), 1, device, max_sms, only)};
}

CudaPlan known_plan_cuda(const Problem& p, const DeviceInfo& device, int max_sms,
                         std::string_view only) {
  const auto key =
      memo_key(key_of(p), key_of(device), max_sms, gemm_int8::choice_of(cuda_kernels(), only));
  static thread_local Memo<key.size(), CudaPlan, 64> known(host_work().plans);
  if (const CudaPlan* found = known.find(key)) return *found;
  return known.keep(key, plan_cuda(p, device, max_sms, only));
}

int64_t CudaPlan::workspace_bytes(const Problem& p) const {
  return Prepared::bytes(p) + (split.count == 1 ? 0 : gemm_int4::bytes_of_segments(p, split_k(p)));
}

std::string CudaPlan::describe(const Problem& p, const DeviceInfo& device) const {
  return gemm_int4::describe(kOp, *this, p, device, workspace_bytes(p));
}

Status run_cuda(const Params& params, const std::optional<Floats>& floats, const CudaPlan& plan,
                void* workspace, void* stream) {
  const Problem& p = params.problem;
  if (p.m == 0 || p.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error(kOp, ": w must start at a multiple of 16 bytes");
  auto* const bytes = static_cast<std::byte*>(workspace);
  const Prepared prepared = Prepared::at(bytes, p);
  Split split = plan.split;
  split.partial = bytes + Prepared::bytes(p);
  split.overlaps = gemm_int8::may_overlap(plan.kernel.arch, plan.is_capped);
  const CudaParams then{params,
                        p,
                        prepared.a,
                        prepared.sums,
                        prepared.scale,
                        params.a_zero_point,
                        params.w,
                        params.w_scale,
                        params.w_zero_point};
  const int blocks = plan.max_blocks();
  if (Status status = launch_prepare(params, floats, prepared, blocks, stream); !status.is_ok())
    return status;
  if (Status status = plan.kernel.launch(then, split, plan.kernel_blocks(), stream);
      !status.is_ok())
    return status;
  return split.count == 1 ? Status::ok() : launch_reduce(then, split, blocks, stream);
}

}  // namespace lamina::gemm_int4_int8
