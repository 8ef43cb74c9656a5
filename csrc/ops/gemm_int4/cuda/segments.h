// The plan of a product of int4 weights on a GPU: which kernel, and how many of k's segments a block adds up. Pure,
// host-only. Kernel: what schedule.h asks for, and name, is_persistent, runs_on().
#pragma once

#include <algorithm>
#include <climits>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/int_math.h"
#include "device/device_info.h"
#include "ops/gemm_int4/problem.h"
#include "ops/gemm_int8/cuda/kernel.h"
#include "ops/gemm_int8/cuda/schedule.h"

namespace lamina::gemm_int4 {

template <class Kernel>
struct SegmentPlan {
  Kernel kernel = {};
  gemm_int8::Split split;
  int sms = 0;             // that it may use
  bool is_capped = false;  // because the caller keeps others for something else
  double cycles = 1e300;   // what the model expects

  // Of any launch, and of the kernel's.
  int max_blocks() const { return is_capped ? sms : INT_MAX; }
  int kernel_blocks() const { return kernel.is_persistent ? sms : max_blocks(); }
};

// Sums of segments; saturated: sizes near 2^63 only need to rank.
inline int64_t bytes_of_segments(const Problem& p, int64_t segment_k) {
  return checked_product(ceil_div(p.k, segment_k), p.m, gemm_int8::partial_stride(p.n), 4)
      .value_or(INT64_MAX);
}

// segment_k: a multiple of every kernel's step_k. a_bytes: of an element. only: see plan_cuda(); else of the kernels that
// the device runs those of the newest arch, whatever m is: tensor cores of one kind add in one order.
template <class Kernel>
SegmentPlan<Kernel> plan_segments(const std::vector<Kernel>& kernels, const Problem& p,
                                  int64_t segment_k, double a_bytes, const DeviceInfo& device,
                                  int max_sms, std::string_view only) {
  // Of sums of segments: beyond it k is split no further.
  constexpr int64_t kMaxWorkspaceBytes = int64_t{64} << 20;
  constexpr int64_t kMaxSplits = 64;
  SegmentPlan<Kernel> best;
  int newest = 0;
  for (const Kernel& kernel : kernels)
    if (kernel.runs_on(device.compute_capability)) newest = std::max(newest, kernel.arch);
  best.is_capped = max_sms < device.sm_count;
  best.sms = std::max(1, std::min(device.sm_count, max_sms));
  const gemm_int8::CudaWork work{p.m, p.n, a_bytes, 0.5};
  const int64_t slabs = ceil_div(p.k, segment_k), segments = std::max<int64_t>(1, slabs);
  for (const Kernel& kernel : kernels) {
    const int64_t fit = gemm_int8::resident_blocks(kernel, device);
    if (!kernel.runs_on(device.compute_capability) || fit == 0 || kernel.cluster > best.sms ||
        (only.empty() ? kernel.arch != newest : only != kernel.name))
      continue;
    const gemm_int8::Share share{best.sms, best.is_capped ? 1 : fit, best.is_capped};
    for (int64_t wanted = 1; wanted <= std::min(segments, kMaxSplits); ++wanted) {
      const int64_t each = ceil_div(segments, wanted);
      if (ceil_div(segments, each) != wanted) continue;  // as another number of splits
      if (wanted > 1 && bytes_of_segments(p, segment_k) > kMaxWorkspaceBytes) break;
      const int64_t steps = std::min(each * (segment_k / kernel.step_k),
                                     std::max<int64_t>(1, ceil_div(p.k, kernel.step_k)));
      const gemm_int8::Split split{static_cast<int>(wanted), static_cast<int>(steps), nullptr};
      const double cycles = gemm_int8::cost(kernel, work, share, split, slabs);
      if (cycles >= best.cycles) continue;
      best.cycles = cycles;
      best.kernel = kernel;
      best.split = split;
    }
  }
  return best;
}

template <class Kernel>
std::string describe(const char* op, const SegmentPlan<Kernel>& plan, const Problem& p,
                     const DeviceInfo& device, int64_t workspace_bytes) {
  const gemm_int8::Grid grid = gemm_int8::grid_of(plan.kernel, p.m, p.n);
  std::ostringstream text;
  text << op << "  m = " << p.m << ", n = " << p.n << ", k = " << p.k << ", groups of " << p.group
       << "\n"
       << "kernel     " << plan.kernel.name << " on compute capability "
       << device.compute_capability / 10 << "." << device.compute_capability % 10 << " with "
       << device.sm_count << " SMs";
  if (plan.is_capped) text << ", of which it may use " << plan.sms;
  text << "\n"
       << "tile       " << plan.kernel.tile_m << " x " << plan.kernel.tile_n << " outputs a block, "
       << plan.kernel.step_k << " input features a step\n"
       << "grid       " << grid.m << " x " << grid.n << " blocks x " << plan.split.count
       << " splits of k, " << plan.split.steps << " steps each\n"
       << "workspace  " << workspace_bytes << " bytes\n"
       << "model      " << static_cast<int64_t>(std::min(plan.cycles, 1e18)) << " cycles";
  return text.str();
}

// What no CUDA kernel of `op` computes.
inline Status check_cuda(const char* op, const Problem& p, const DeviceInfo& device) {
  if (device.compute_capability < 80)
    return Status::error(op, ": compute capability ", device.compute_capability / 10, ".",
                         device.compute_capability % 10, "; the kernels need 8.0 or newer");
  constexpr int64_t kMost = (int64_t{1} << 31) - 65536;
  if (p.m > kMost || p.n > kMost || p.k > kMost)
    return Status::error(op, ": m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         "; on CUDA each may be at most ", kMost);
  return Status::ok();
}

}  // namespace lamina::gemm_int4
