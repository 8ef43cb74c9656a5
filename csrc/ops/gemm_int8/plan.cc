#include "ops/gemm_int8/plan.h"

#include <algorithm>
#include <sstream>

#include "base/int_math.h"
#include "layout/int8_tile.h"

namespace lamina::gemm_int8 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) CpuKernel op##_##isa(int64_t);
#include "ops/gemm_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// Orders of magnitude are enough here: the model only ranks ways to cut the same work.
constexpr int64_t kPackBytesPerCycle = 8;
constexpr int64_t kWeightBytesPerCycle = 4;  // a core's share of DRAM, about 12 GB/s
constexpr int64_t kForkCycles = 15000;       // waking the thread pool, about 5 us
// A worker's share of a panel is cut into up to kTasksPerWorker tasks of at least kTaskCycles each.
constexpr int64_t kTasksPerWorker = 8;
constexpr int64_t kTaskCycles = 100000;  // about 30 us

struct Cost {
  int64_t compute, weights, pack;
  int64_t cycles() const { return std::max(compute, weights) + pack; }
};

int64_t panel_rows(const CpuKernel& kernel, int64_t rows, const Problem& p, int64_t l2_bytes) {
  // The packed rows and their sums.
  const int64_t tile_bytes = std::max<int64_t>(1, kernel.scratch_bytes(kernel.tile_m, p));
  const int64_t fitting = l2_bytes / 2 / tile_bytes * kernel.tile_m;
  return std::clamp<int64_t>(fitting, kernel.tile_m,
                             round_up(std::max<int64_t>(rows, 1), kernel.tile_m));
}

Cost task_cost(const CpuKernel& kernel, int64_t rows, int64_t columns, const Problem& p,
               int64_t l2_bytes) {
  const int64_t passes = ceil_div(rows, panel_rows(kernel, rows, p, l2_bytes)), k = p.k;
  // Doubles cannot overflow; sizes near 2^63 only need to rank.
  const double work =
      static_cast<double>(rows) * static_cast<double>(columns) * static_cast<double>(k);
  const double weights =
      static_cast<double>(passes) * static_cast<double>(columns) * static_cast<double>(k);
  return Cost{static_cast<int64_t>(std::min(work / kernel.macs_per_cycle, 1e18)),
              static_cast<int64_t>(std::min(weights / kWeightBytesPerCycle, 1e18)),
              static_cast<int64_t>(std::min(
                  static_cast<double>(rows) * static_cast<double>(k) / kPackBytesPerCycle, 1e18))};
}

const CpuKernel& choose_kernel(int64_t m, Isa isa) {
  const CpuKernel* chosen = &kernels().front();
  for (const CpuKernel& kernel : kernels())
    if (kernel.isa <= isa && m >= kernel.min_m) chosen = &kernel;
  return *chosen;
}

}  // namespace

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> all = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) op##_##isa(min_m),
#include "ops/gemm_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL
  };
  return all;
}

Status check(const Problem& p) {
  if (p.m < 0 || p.n < 0 || p.k < 0)
    return Status::error("gemm_int8: m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         "; none may be negative");
  if (p.k > kMaxK)
    return Status::error("gemm_int8: k = ", p.k, " must be at most ", kMaxK,
                         ", the most for which int32 column sums are exact");
  if (!checked_product(p.m, std::max<int64_t>(p.n, 1), 4) ||
      !checked_product(p.m, std::max<int64_t>(p.k, 1)) || !int8_tile::packed_bytes(p.n, p.k))
    return Status::error("gemm_int8: m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         " needs more than 2^63 bytes");
  return Status::ok();
}

Plan plan(const Problem& p, const CpuInfo& cpu, int threads) {
  Plan best;
  best.kernel = choose_kernel(p.m, cpu.isa);
  const CpuKernel& kernel = best.kernel;
  int64_t best_cycles = INT64_MAX;
  const auto consider = [&](int64_t grid_m, int64_t grid_n) {
    const int64_t rows = round_up(ceil_div(p.m, grid_m), kernel.tile_m);
    const int64_t columns = round_up(ceil_div(p.n, grid_n), kernel.tile_n);
    if (rows <= 0 || columns <= 0) return;
    const int64_t fork = grid_m * grid_n > 1 ? kForkCycles : 0;
    const int64_t cycles = task_cost(kernel, rows, columns, p, cpu.l2_bytes).cycles() + fork;
    if (cycles >= best_cycles) return;
    best_cycles = cycles;
    best.block_m = rows;
    best.block_n = columns;
    best.grid_m = ceil_div(p.m, rows);
    best.grid_n = ceil_div(p.n, columns);
  };
  consider(1, 1);
  for (int64_t grid_m = 1; grid_m <= threads; ++grid_m) consider(grid_m, threads / grid_m);
  best.workers = best.tasks();
  // One panel a task: a worker packs it for the first of a row's tasks and keeps it for the others.
  const int64_t panels = ceil_div(best.block_m, panel_rows(kernel, best.block_m, p, cpu.l2_bytes));
  best.block_m = round_up(ceil_div(best.block_m, panels), kernel.tile_m);
  best.grid_m = ceil_div(p.m, best.block_m);
  if (best.workers > 1) {
    const int64_t pieces =
        std::clamp<int64_t>(best_cycles / panels / kTaskCycles, 1, kTasksPerWorker);
    best.block_n = round_up(ceil_div(best.block_n, pieces), kernel.tile_n);
    best.grid_n = ceil_div(p.n, best.block_n);
  }
  best.scratch_bytes = kernel.scratch_bytes(best.block_m, p);
  return best;
}

Block Plan::block(int64_t task, const Problem& problem) const {
  const int64_t m_begin = task / grid_n * block_m;
  const int64_t n_begin = task % grid_n * block_n;
  return Block{m_begin, std::min(m_begin + block_m, problem.m),
               n_begin, std::min(n_begin + block_n, problem.n),
               block_m, false};
}

std::string Plan::describe(const Problem& p, const CpuInfo& cpu) const {
  const Cost cost = task_cost(kernel, block_m, block_n, p, cpu.l2_bytes);
  std::ostringstream text;
  text << "gemm_int8  m = " << p.m << ", n = " << p.n << ", k = " << p.k
       << (p.is_grouped ? ", scales along k\n" : "\n") << "kernel     " << kernel.name
       << " on a CPU with " << isa_name(cpu.isa) << "\n";
  for (const CpuKernel& other : kernels())
    if (other.isa > kernel.isa)
      text << "not        " << other.name << ": "
           << (other.isa > cpu.isa ? "instruction set not in use" : "worth it only for m >= ")
           << (other.isa > cpu.isa ? "" : std::to_string(other.min_m)) << "\n";
  text << "tile       " << kernel.tile_m << " x " << kernel.tile_n
       << " outputs a microkernel call\n"
       << "grid       " << grid_m << " x " << grid_n << " tasks for " << workers
       << " threads, each " << block_m << " x " << block_n << " outputs\n"
       << "panel      " << block_m << " rows of a packed at a time ("
       << block_m / kernel.tile_m * int8_tile::tiles_k(p.k) * kernel.packed_bytes
       << " bytes of an L2 of " << cpu.l2_bytes << ")\n"
       << "model      cycles a task: multiply " << cost.compute << ", stream weights "
       << cost.weights << ", pack activations " << cost.pack << "; bound by "
       << (cost.compute > cost.weights ? "multiplies" : "memory");
  return text.str();
}

}  // namespace lamina::gemm_int8
