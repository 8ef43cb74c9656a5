// Cuts a product on a CPU into blocks and tasks, for weights of any type. Pure, host-only.
#pragma once

#include <cstdint>
#include <string>

#include "base/int_math.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "base/work_stealing.h"

namespace lamina::gemm {

// Outputs [m_begin, m_end) x [n_begin, n_end); n_begin is a multiple of 16.
struct Block {
  int64_t m_begin, m_end;
  int64_t n_begin, n_end;
  int64_t panel_m;
  bool is_packed;  // the previous block left these rows packed in the scratch
};

// A product, and the kernel that computes it.
struct Work {
  int64_t m, n, k;
  int tile_m, tile_n;     // outputs of one microkernel call
  int macs_per_cycle;     // the bound of the ports
  int expand_rows;        // as in CpuKernel
  double weight_bytes;    // of one weight, with its share of the scales
  int64_t panel_bytes;    // scratch for each tile_m rows of a panel
  int64_t scratch_bytes;  // scratch besides the panels
};

// A grid_m x grid_n grid of tasks. A task owns block_m x block_n outputs over the whole of k. Each worker starts with
// a range of tasks and steals from other workers when its own range is done (base/work_stealing.h).
struct Blocking {
  int64_t workers = 0;  // threads worth waking, at most tasks()
  int64_t grid_m = 0;
  int64_t grid_n = 0;
  int64_t block_m = 0;  // a multiple of tile_m; these rows of a stay in L2 when packed
  int64_t block_n = 0;  // a multiple of tile_n
  int64_t scratch_bytes = 0;

  constexpr int64_t tasks() const { return grid_m * grid_n; }
  Block block(int64_t task, int64_t m, int64_t n) const;
  std::string describe_tasks(int tile_m, int tile_n) const;
};

// The cycles that the model expects of a task.
struct Cost {
  int64_t compute, weights, pack;
  int64_t cycles() const;
  std::string describe() const;
};

Cost task_cost(const Work& work, int64_t rows, int64_t columns, int64_t l2_bytes);
Blocking cut(const Work& work, int64_t l2_bytes, int threads);

// Calls compute(block, scratch) for every task.
template <class Compute>
void run_blocks(const Blocking& blocking, int64_t m, int64_t n, const Parallel& parallel,
                const Compute& compute) {
  WorkStealing tasks(blocking.tasks(), blocking.workers);
  parallel.for_range(blocking.workers, 1, [&](int64_t begin, int64_t end) {
    void* const scratch = thread_scratch(blocking.scratch_bytes);
    int64_t packed_row = -1;  // first of the rows that lie packed in the scratch
    for (int64_t worker = begin; worker < end; ++worker)
      tasks.run(worker, [&](int64_t task) {
        Block block = blocking.block(task, m, n);
        block.is_packed = block.m_begin == packed_row;
        compute(block, scratch);
        packed_row = block.m_begin;
      });
  });
}

}  // namespace lamina::gemm
