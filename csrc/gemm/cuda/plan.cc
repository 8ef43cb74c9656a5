#include "gemm/cuda/plan.h"

#include <algorithm>
#include <sstream>

#include "base/int_math.h"
#include "base/memo.h"
#include "gemm/cuda/cost.h"

namespace lamina::gemm {
namespace {

// Partial sums beyond this size are not worth a split.
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;

// Saturates, because sizes near 2^63 need only a rank.
int64_t bytes_of(int64_t partials, const Problem& p) {
  return checked_product(partials, p.m, partial_stride(p.n), 4).value_or(INT64_MAX);
}

// The part of a plan's key that stands for the forced kernel: 0 if none is forced, another number for each kernel, and
// one number for all names that are not a kernel.
int64_t choice_of(const std::vector<CudaKernel>& kernels, std::string_view only) {
  if (only.empty()) return 0;
  const auto is_it = [&](const CudaKernel& kernel) { return only == kernel.name; };
  return std::find_if(kernels.begin(), kernels.end(), is_it) - kernels.begin() + 1;
}

// The arch whose kernels may be chosen, or 0 for any.
int arch_of(const CudaOp& op, const DeviceInfo& device) {
  int newest = 0;
  if (!op.needs_one_arch) return newest;
  for (const CudaKernel& kernel : op.kernels)
    if (kernel.runs_on(device.compute_capability)) newest = std::max(newest, kernel.arch);
  return newest;
}

// Considers every split of k for one kernel.
void consider(const CudaOp& op, const Problem& p, const KRule& rule, const CudaKernel& kernel,
              int64_t resident, CudaPlan& best) {
  const CudaWork work{p.m, p.n, op.a_bytes, op.w_bytes};
  const SmBudget budget{best.sms, best.is_capped ? 1 : resident, best.is_capped};
  const int64_t chunk_k = rule.chunk_k > 0 ? rule.chunk_k : kernel.step_k;
  const int64_t chunks = std::max<int64_t>(1, ceil_div(p.k, chunk_k));
  const int64_t all_steps = std::max<int64_t>(1, ceil_div(p.k, kernel.step_k));
  const int64_t fewest = ceil_div(chunks, std::max<int64_t>(1, rule.max_k / chunk_k));
  const int64_t most = std::max(fewest, std::min<int64_t>(op.max_splits, chunks));
  for (int64_t wanted = fewest; wanted <= most; ++wanted) {
    const int64_t each = ceil_div(chunks, wanted), count = ceil_div(chunks, each);
    if (count != wanted) continue;  // a smaller number gave the same split
    const int64_t partials = count == 1 ? 0 : rule.one_each ? chunks : count;
    if (count > fewest && bytes_of(partials, p) > kMaxPartialBytes) break;
    const int64_t steps = std::min(each * (chunk_k / kernel.step_k), all_steps);
    const Split split{static_cast<int>(count), static_cast<int>(steps)};
    const double cycles = cost(kernel, work, budget, split, partials);
    if (cycles >= best.cycles) continue;
    best.cycles = cycles;
    best.kernel = kernel;
    best.split = split;
    best.partials = partials;
  }
}

}  // namespace

Status check_cuda(const char* op, const Problem& p, const DeviceInfo& device) {
  if (device.compute_capability < 80)
    return Status::error(op, ": compute capability ", device.compute_capability / 10, ".",
                         device.compute_capability % 10, "; the kernels need 8.0 or newer");
  constexpr int64_t kMost = (int64_t{1} << 31) - 65536;  // coordinates and tile numbers are int32
  if (p.m > kMost || p.n > kMost || p.k > kMost)
    return Status::error(op, ": m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         "; on CUDA each may be at most ", kMost);
  return Status::ok();
}

CudaPlan plan_cuda(const CudaOp& op, const Problem& p, const KRule& rule, const DeviceInfo& device,
                   const Limits& limits) {
  CudaPlan best;
  best.is_capped = limits.max_sms < device.sm_count;
  best.sms = std::max(1, std::min(device.sm_count, limits.max_sms));
  const int arch = arch_of(op, device);
  for (const CudaKernel& kernel : op.kernels) {
    const int64_t resident = resident_blocks(kernel, device);
    const bool is_wanted =
        limits.only.empty() ? arch == 0 || kernel.arch == arch : limits.only == kernel.name;
    if (is_wanted && kernel.runs_on(device.compute_capability) && resident > 0 &&
        kernel.cluster <= best.sms && kernel.a_alignment <= limits.a_alignment)
      consider(op, p, rule, kernel, resident, best);
  }
  return best;
}

CudaPlan known_plan_cuda(const CudaOp& op, const Problem& p, const KRule& rule,
                         const DeviceInfo& device, const Limits& limits) {
  const auto& [a_alignment, max_sms, only] = limits;
  const auto key =
      memo_key(&op, key_of(p), key_of(device), a_alignment, max_sms, choice_of(op.kernels, only));
  static thread_local Memo<key.size(), CudaPlan, 64> known(host_work().plans);
  if (const CudaPlan* found = known.find(key)) return *found;
  return known.keep(key, plan_cuda(op, p, rule, device, limits));
}

int64_t CudaPlan::partial_bytes(const Problem& p) const { return bytes_of(partials, p); }

std::string CudaPlan::describe(const CudaOp& op, const Problem& p, const DeviceInfo& device,
                               int64_t workspace_bytes) const {
  const BlockGrid grid = grid_of(kernel, p.m, p.n);
  std::ostringstream text;
  text << op.name << "  m = " << p.m << ", n = " << p.n << ", k = " << p.k;
  if (p.is_grouped()) text << ", group = " << p.group;
  text << "\nkernel     " << kernel.name << " on compute capability "
       << device.compute_capability / 10 << "." << device.compute_capability % 10 << " with "
       << device.sm_count << " SMs";
  if (is_capped) text << ", of which it may use " << sms;
  text << "\ntile       " << kernel.tile_m << " x " << kernel.tile_n << " outputs a block, "
       << kernel.step_k << " input features a step\n"
       << "grid       " << grid.m << " x " << grid.n << " blocks x " << split.count
       << " splits of k, " << split.steps << " steps each\n"
       << "workspace  " << workspace_bytes << " bytes\n"
       << "model      " << static_cast<int64_t>(std::min(cycles, 1e18)) << " cycles";
  return text.str();
}

}  // namespace lamina::gemm
