#include "ops/gemm_int4/cuda/plan.h"

#include "ops/gemm_int4/plan.h"

namespace lamina::gemm_int4 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m)
#define LAMINA_CUDA_KERNEL(op, name) CudaKernel op##_##name();
#include "ops/gemm_int4/kernels.inc"
#undef LAMINA_CUDA_KERNEL
#undef LAMINA_CPU_KERNEL

namespace {

const char* name_of(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

const char* name_of(OfGroups::Kind kind) {
  using Kind = OfGroups::Kind;
  return kind == Kind::kU8    ? "uint8"
         : kind == Kind::kF32 ? name_of(DType::kF32)
         : kind == Kind::kF16 ? name_of(DType::kF16)
                              : name_of(DType::kBF16);
}

bool is_of(OfGroups::Kind kind, DType dtype) {
  return kind == (dtype == DType::kF16 ? OfGroups::Kind::kF16 : OfGroups::Kind::kBF16);
}

}  // namespace

const std::vector<CudaKernel>& cuda_kernels() {
  static const std::vector<CudaKernel> all = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m)
#define LAMINA_CUDA_KERNEL(op, name) op##_##name(),
#include "ops/gemm_int4/kernels.inc"
#undef LAMINA_CUDA_KERNEL
#undef LAMINA_CPU_KERNEL
  };
  return all;
}

Status check_cuda(const Problem& p, const DeviceInfo& device) {
  return check_cuda("gemm_int4", p, device);
}

Status check_cuda(const Params& params) {
  if (params.a_dtype == DType::kF32)
    return Status::error("gemm_int4: a is float32; on CUDA it must be float16 or bfloat16");
  if (!is_of(params.w_scale.kind, params.a_dtype))
    return Status::error("gemm_int4: w_scale must have the dtype of a, ", name_of(params.a_dtype),
                         ", on CUDA, got ", name_of(params.w_scale.kind));
  const OfGroups& zero = params.w_zero_point;
  if (zero.is_given() && zero.kind != OfGroups::Kind::kU8 && !is_of(zero.kind, params.a_dtype))
    return Status::error("gemm_int4: w_zero_point must be uint8 or have the dtype of a, ",
                         name_of(params.a_dtype), ", on CUDA, got ", name_of(zero.kind));
  return Status::ok();
}

CudaPlan plan_cuda(const Problem& p, const DeviceInfo& device, int max_sms, std::string_view only) {
  return {plan_segments(cuda_kernels(), p, kSegmentK, 2, device, max_sms, only)};
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
  return split.count == 1 ? 0 : bytes_of_segments(p, kSegmentK);
}

std::string CudaPlan::describe(const Problem& p, const DeviceInfo& device) const {
  return gemm_int4::describe("gemm_int4", *this, p, device, workspace_bytes(p));
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error("gemm_int4: w must start at a multiple of 16 bytes");
  Split split = plan.split;
  split.partial = workspace;
  split.overlaps = gemm_int8::may_overlap(plan.kernel.arch, plan.is_capped);
  if (Status status = plan.kernel.launch(params, split, plan.kernel_blocks(), stream);
      !status.is_ok())
    return status;
  return split.count == 1 ? Status::ok() : launch_reduce(params, split, plan.max_blocks(), stream);
}

}  // namespace lamina::gemm_int4
