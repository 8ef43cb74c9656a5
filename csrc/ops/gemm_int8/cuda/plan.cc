#include "ops/gemm_int8/cuda/plan.h"

#include <algorithm>
#include <sstream>

#include "base/int_math.h"
#include "layout/int8_tile.h"
#include "ops/gemm_int8/cuda/schedule.h"
#include "ops/gemm_int8/plan.h"

namespace lamina::gemm_int8 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m)
#define LAMINA_CUDA_KERNEL(op, name) CudaKernel op##_##name();
#include "ops/gemm_int8/kernels.inc"
#undef LAMINA_CUDA_KERNEL
#undef LAMINA_CPU_KERNEL

namespace {

constexpr int64_t kMaxSplits = 16;
// Of partial sums with scales along k, whose number grows with k.
constexpr int64_t kMaxWorkspaceBytes = int64_t{64} << 20;

// Saturated: sizes near 2^63 only need to rank.
int64_t workspace_bytes(const Split& split, const Problem& p) {
  if (split.count == 1) return 0;
  return checked_product(slabs(split, p), p.m, partial_stride(p.n), 4).value_or(INT64_MAX);
}

int64_t steps_of(const CudaKernel& kernel, const Problem& p) {
  return ceil_div(int8_tile::tiles_k(p.k) * int8_tile::kTileK, kernel.step_k);
}

}  // namespace

const std::vector<CudaKernel>& cuda_kernels() {
  static const std::vector<CudaKernel> all = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m)
#define LAMINA_CUDA_KERNEL(op, name) op##_##name(),
#include "ops/gemm_int8/kernels.inc"
#undef LAMINA_CUDA_KERNEL
#undef LAMINA_CPU_KERNEL
  };
  return all;
}

Status check_cuda(const Problem& p, const DeviceInfo& device) {
  if (Status status = check(p); !status.is_ok()) return status;
  if (device.compute_capability < 80)
    return Status::error("gemm_int8: compute capability ", device.compute_capability / 10, ".",
                         device.compute_capability % 10, "; the kernels need 8.0 or newer");
  constexpr int64_t kMostRows = (int64_t{1} << 31) - 1, kMostColumns = int64_t{65535} * 64;
  if (p.m > kMostRows || p.n > kMostColumns)
    return Status::error("gemm_int8: m = ", p.m, ", n = ", p.n, "; on CUDA m may be at most ",
                         kMostRows, " and n ", kMostColumns);
  return Status::ok();
}

CudaPlan plan_cuda(const Problem& p, const DeviceInfo& device, const Limits& limits) {
  CudaPlan best;
  best.is_capped = limits.max_sms < device.sm_count;
  best.sms = std::max(1, std::min(device.sm_count, limits.max_sms));
  const CudaWork work{p.m, p.n, 1, 1};
  double best_cost = 1e300;
  for (const CudaKernel& kernel : cuda_kernels()) {
    const int64_t fit = resident_blocks(kernel, device);
    if (!kernel.runs_on(device.compute_capability) || fit == 0 || kernel.cluster > best.sms ||
        kernel.is_grouped != p.is_grouped || kernel.a_alignment > limits.a_alignment ||
        (!limits.only.empty() && limits.only != kernel.name))
      continue;
    const int64_t resident = best.is_capped ? 1 : fit;
    const int64_t steps = std::max<int64_t>(1, steps_of(kernel, p));
    // Segments stay whole; without them a split's sums stay in int32.
    const int64_t unit = p.is_grouped ? kSegmentGroups * kScaleGroup / kernel.step_k : 1;
    const int64_t longest = p.is_grouped ? steps : kMaxExactK / kernel.step_k;
    const int64_t fewest = ceil_div(steps, longest);
    const int64_t most = std::max(fewest, std::min(kMaxSplits, steps));
    for (int64_t wanted = fewest; wanted <= most; ++wanted) {
      const int64_t each = round_up(ceil_div(steps, wanted), unit);
      const Split split{static_cast<int>(ceil_div(steps, each)), static_cast<int>(each), nullptr};
      const double cycles =
          cost(kernel, work, {best.sms, resident, best.is_capped}, split, slabs(split, p));
      if (each > longest && !p.is_grouped) continue;
      if (p.is_grouped && workspace_bytes(split, p) > kMaxWorkspaceBytes) continue;
      if (cycles >= best_cost) continue;
      best_cost = cycles;
      best.kernel = kernel;
      best.split = split;
    }
  }
  if (best.kernel.launch == nullptr) return best;
  const Grid grid = grid_of(best.kernel, p.m, p.n);
  best.blocks_m = grid.m;
  best.blocks_n = grid.n;
  best.cycles = static_cast<int64_t>(std::min(best_cost, 1e18));
  return best;
}

CudaPlan known_plan_cuda(const Problem& p, const DeviceInfo& device, const Limits& limits) {
  const auto& [a_alignment, max_sms, only] = limits;
  const auto key =
      memo_key(key_of(p), key_of(device), a_alignment, max_sms, choice_of(cuda_kernels(), only));
  static thread_local Memo<key.size(), CudaPlan, 64> known(host_work().plans);
  if (const CudaPlan* found = known.find(key)) return *found;
  return known.keep(key, plan_cuda(p, device, limits));
}

int64_t CudaPlan::workspace_bytes(const Problem& p) const {
  return gemm_int8::workspace_bytes(split, p);
}

std::string CudaPlan::describe(const Problem& p, const DeviceInfo& device) const {
  std::ostringstream text;
  text << "gemm_int8  m = " << p.m << ", n = " << p.n << ", k = " << p.k
       << (p.is_grouped ? ", scales along k\n" : "\n") << "kernel     " << kernel.name
       << " on compute capability " << device.compute_capability / 10 << "."
       << device.compute_capability % 10 << " with " << device.sm_count << " SMs";
  if (is_capped) text << ", of which it may use " << sms;
  text << "\n"
       << "tile       " << kernel.tile_m << " x " << kernel.tile_n << " outputs a block, "
       << kernel.step_k << " input features a step\n"
       << "grid       " << blocks_m << " x " << blocks_n << " blocks x " << split.count
       << " splits of k, " << split.steps << " steps each\n"
       << "workspace  " << workspace_bytes(p) << " bytes\n"
       << "model      " << cycles << " cycles";
  return text.str();
}

Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream) {
  if (params.problem.m == 0 || params.problem.n == 0) return Status::ok();
  if (reinterpret_cast<uintptr_t>(params.w) % 16 != 0)
    return Status::error("gemm_int8: w must start at a multiple of 16 bytes");
  Split split = plan.split;
  split.partial = workspace;
  split.overlaps = may_overlap(plan.kernel.arch, plan.is_capped);
  const int blocks = plan.kernel.is_persistent ? plan.sms : plan.max_blocks();
  if (Status status = plan.kernel.launch(params, split, blocks, stream); !status.is_ok())
    return status;
  return split.count == 1 ? Status::ok() : launch_reduce(params, split, plan.max_blocks(), stream);
}

}  // namespace lamina::gemm_int8
