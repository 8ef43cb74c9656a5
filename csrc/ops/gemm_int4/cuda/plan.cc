#include "ops/gemm_int4/cuda/plan.h"

#include <algorithm>
#include <sstream>

#include "base/int_math.h"
#include "ops/gemm_int8/cuda/schedule.h"

namespace lamina::gemm_int4 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m)
#define LAMINA_CUDA_KERNEL(op, name) CudaKernel op##_##name();
#include "ops/gemm_int4/kernels.inc"
#undef LAMINA_CUDA_KERNEL
#undef LAMINA_CPU_KERNEL

namespace {

// Sums of segments: beyond it k is split no further.
constexpr int64_t kMaxWorkspaceBytes = int64_t{64} << 20;

// Saturated: sizes near 2^63 only need to rank.
int64_t bytes_of_slabs(const Problem& p) {
  return checked_product(slabs(p), p.m, gemm_int8::partial_stride(p.n), 4).value_or(INT64_MAX);
}

const char* name_of(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
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
  if (device.compute_capability < 80)
    return Status::error("gemm_int4: compute capability ", device.compute_capability / 10, ".",
                         device.compute_capability % 10, "; the kernels need 8.0 or newer");
  constexpr int64_t kMost = (int64_t{1} << 31) - 65536;
  if (p.m > kMost || p.n > kMost || p.k > kMost)
    return Status::error("gemm_int4: m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         "; on CUDA each may be at most ", kMost);
  return Status::ok();
}

Status check_cuda(const Params& params) {
  if (params.a_dtype == DType::kF32)
    return Status::error("gemm_int4: a is float32; on CUDA it must be float16 or bfloat16");
  if (!is_of(params.w_scale.kind, params.a_dtype))
    return Status::error("gemm_int4: w_scale must have the dtype of a, ", name_of(params.a_dtype),
                         ", on CUDA");
  const OfGroups& zero = params.w_zero_point;
  if (zero.is_given() && zero.kind != OfGroups::Kind::kU8 && !is_of(zero.kind, params.a_dtype))
    return Status::error("gemm_int4: w_zero_point must be uint8 or have the dtype of a, ",
                         name_of(params.a_dtype), ", on CUDA");
  return Status::ok();
}

CudaPlan plan_cuda(const Problem& p, const DeviceInfo& device, int max_sms, std::string_view only) {
  CudaPlan best;
  best.is_capped = max_sms < device.sm_count;
  best.sms = std::max(1, std::min(device.sm_count, max_sms));
  const gemm_int8::CudaWork work{p.m, p.n, 2, 0.5};
  for (const CudaKernel& kernel : cuda_kernels()) {
    const int64_t fit = gemm_int8::resident_blocks(kernel, device);
    if (!kernel.runs_on(device.compute_capability) || fit == 0 ||
        (!only.empty() && only != kernel.name))
      continue;
    const gemm_int8::Share share{best.sms, best.is_capped ? 1 : fit, best.is_capped};
    const int64_t segments = std::max<int64_t>(1, slabs(p));
    const int64_t segment_steps = kSegmentK / kernel.step_k;
    for (int64_t wanted = 1; wanted <= segments; ++wanted) {
      const int64_t each = ceil_div(segments, wanted);
      if (ceil_div(segments, each) != wanted) continue;  // as another number of splits
      if (wanted > 1 && bytes_of_slabs(p) > kMaxWorkspaceBytes) break;
      const int64_t steps =
          std::min(each * segment_steps, std::max<int64_t>(1, ceil_div(p.k, kernel.step_k)));
      const Split split{static_cast<int>(wanted), static_cast<int>(steps), nullptr};
      const double cycles = gemm_int8::cost(kernel, work, share, split, slabs(p));
      if (cycles >= best.cycles) continue;
      best.cycles = cycles;
      best.kernel = kernel;
      best.split = split;
    }
  }
  return best;
}

int64_t CudaPlan::workspace_bytes(const Problem& p) const {
  return split.count == 1 ? 0 : bytes_of_slabs(p);
}

std::string CudaPlan::describe(const Problem& p, const DeviceInfo& device) const {
  const gemm_int8::Grid grid = gemm_int8::grid_of(kernel, p.m, p.n);
  std::ostringstream text;
  text << "gemm_int4  m = " << p.m << ", n = " << p.n << ", k = " << p.k << ", groups of "
       << p.group << "\n"
       << "kernel     " << kernel.name << " on compute capability "
       << device.compute_capability / 10 << "." << device.compute_capability % 10 << " with "
       << device.sm_count << " SMs";
  if (is_capped) text << ", of which it may use " << sms;
  text << "\n"
       << "tile       " << kernel.tile_m << " x " << kernel.tile_n << " outputs a block, "
       << kernel.step_k << " input features a step\n"
       << "grid       " << grid.m << " x " << grid.n << " blocks x " << split.count
       << " splits of k, " << split.steps << " steps each\n"
       << "workspace  " << workspace_bytes(p) << " bytes\n"
       << "model      " << static_cast<int64_t>(std::min(cycles, 1e18)) << " cycles";
  return text.str();
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error("gemm_int4: w must start at a multiple of 16 bytes");
  Split split = plan.split;
  split.partial = workspace;
  if (Status status = plan.kernel.launch(params, split, plan.max_blocks(), stream); !status.is_ok())
    return status;
  return split.count == 1 ? Status::ok() : launch_reduce(params, split, plan.max_blocks(), stream);
}

}  // namespace lamina::gemm_int4
