#include "gemm/cpu/blocking.h"

#include <algorithm>
#include <sstream>

namespace lamina::gemm {
namespace {

// Orders of magnitude suffice: the model only ranks ways to cut the same work.
constexpr int64_t kPackBytesPerCycle = 8;
constexpr int64_t kWeightBytesPerCycle = 4;  // a core's share of DRAM, about 12 GB/s
constexpr int64_t kForkCycles = 15000;       // waking the thread pool, about 5 us
// A worker's share of a panel is cut into up to kTasksPerWorker tasks of at least kTaskCycles each.
constexpr int64_t kTasksPerWorker = 8;
constexpr int64_t kTaskCycles = 100000;  // about 30 us

int64_t panel_rows(const Work& work, int64_t rows, int64_t l2_bytes) {
  // The packed rows and their sums take at most half of L2. A kernel that expands the weights for each panel may take
  // twice L2: taller panels save more time than it costs to read their rows from L3, if the microkernel reads at most
  // two activations a cycle. W4A16 with panels of 96 rows is 1.15 times as fast as with panels of 18 rows (2026-11,
  // Zen 4, one thread, 256 x 4096 x 4096).
  const bool may_leave_l2 = work.expand_rows > 0 && work.macs_per_cycle <= 2 * work.tile_n;
  const int64_t fast_bytes = may_leave_l2 ? 2 * l2_bytes : l2_bytes / 2;
  const int64_t panel_bytes = std::max<int64_t>(1, work.panel_bytes);
  const int64_t fitting = (fast_bytes - work.scratch_bytes) / panel_bytes * work.tile_m;
  const int64_t most = round_up(std::max<int64_t>(rows, 1), work.tile_m);
  return std::min(std::max<int64_t>(fitting, work.tile_m), most);
}

// Doubles cannot overflow, and sizes near 2^63 need only a rank.
int64_t cycles_of(double amount, double each) {
  return static_cast<int64_t>(std::min(amount / each, 1e18));
}

}  // namespace

int64_t Cost::cycles() const { return std::max(compute, weights) + pack; }

std::string Cost::describe() const {
  std::ostringstream text;
  text << "model      cycles a task: multiply " << compute << ", stream weights " << weights
       << ", pack activations " << pack << "; bound by "
       << (compute > weights ? "multiplies" : "memory");
  return text.str();
}

std::string Blocking::describe_tasks(int tile_m, int tile_n) const {
  std::ostringstream text;
  text << "tile       " << tile_m << " x " << tile_n << " outputs a microkernel call\n"
       << "grid       " << grid_m << " x " << grid_n << " tasks for " << workers
       << " threads, each " << block_m << " x " << block_n << " outputs\n";
  return text.str();
}

Cost task_cost(const Work& work, int64_t rows, int64_t columns, int64_t l2_bytes) {
  const auto passes = static_cast<double>(ceil_div(rows, panel_rows(work, rows, l2_bytes)));
  const auto m = static_cast<double>(rows), n = static_cast<double>(columns),
             k = static_cast<double>(work.k);
  return Cost{cycles_of((m + passes * work.expand_rows) * n * k, work.macs_per_cycle),
              cycles_of(passes * n * k * work.weight_bytes, kWeightBytesPerCycle),
              cycles_of(m * k, kPackBytesPerCycle)};
}

Blocking cut(const Work& work, int64_t l2_bytes, int threads) {
  Blocking best;
  int64_t best_cycles = INT64_MAX;
  const auto consider = [&](int64_t grid_m, int64_t grid_n) {
    const int64_t rows = round_up(ceil_div(work.m, grid_m), work.tile_m);
    const int64_t columns = round_up(ceil_div(work.n, grid_n), work.tile_n);
    if (rows <= 0 || columns <= 0) return;
    const int64_t fork = grid_m * grid_n > 1 ? kForkCycles : 0;
    const int64_t cycles = task_cost(work, rows, columns, l2_bytes).cycles() + fork;
    if (cycles >= best_cycles) return;
    best_cycles = cycles;
    best.block_m = rows;
    best.block_n = columns;
    best.grid_m = ceil_div(work.m, rows);
    best.grid_n = ceil_div(work.n, columns);
  };
  consider(1, 1);
  for (int64_t grid_m = 1; grid_m <= threads; ++grid_m) consider(grid_m, threads / grid_m);
  best.workers = best.tasks();
  // Each task has one panel of rows. A worker packs the panel for its first task in a grid row and keeps it for the
  // others.
  const int64_t panels = ceil_div(best.block_m, panel_rows(work, best.block_m, l2_bytes));
  best.block_m = round_up(ceil_div(best.block_m, panels), work.tile_m);
  best.grid_m = ceil_div(work.m, best.block_m);
  if (best.workers > 1) {
    const int64_t pieces =
        std::clamp<int64_t>(best_cycles / panels / kTaskCycles, 1, kTasksPerWorker);
    best.block_n = round_up(ceil_div(best.block_n, pieces), work.tile_n);
    best.grid_n = ceil_div(work.n, best.block_n);
  }
  best.scratch_bytes = best.block_m / work.tile_m * work.panel_bytes + work.scratch_bytes;
  return best;
}

Block Blocking::block(int64_t task, int64_t m, int64_t n) const {
  const int64_t m_begin = task / grid_n * block_m;
  const int64_t n_begin = task % grid_n * block_n;
  return Block{m_begin, std::min(m_begin + block_m, m),
               n_begin, std::min(n_begin + block_n, n),
               block_m, false};
}

}  // namespace lamina::gemm
