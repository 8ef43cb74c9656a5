// How a product on a CPU is cut into blocks and tasks, whatever its weights are. Pure, host-only.
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
  bool is_packed;  // the scratch holds these rows packed, from the block before
};

// A product, and the kernel that computes it.
struct Work {
  int64_t m, n, k;
  int tile_m, tile_n;     // outputs of one microkernel call
  int macs_per_cycle;     // what the ports allow
  double weight_bytes;    // of a weight
  int64_t panel_bytes;    // of scratch, for each tile_m rows of a panel
  int64_t scratch_bytes;  // besides
};

// A grid_m x grid_n grid of tasks; a task owns block_m x block_n outputs over the whole k. Workers
// have ranges of tasks and take from others' when theirs are done (base/work_stealing.h).
struct Blocking {
  int64_t workers = 0;  // threads worth waking, at most tasks()
  int64_t grid_m = 0;
  int64_t grid_n = 0;
  int64_t block_m = 0;  // a multiple of tile_m; packed, these rows of a stay in L2
  int64_t block_n = 0;  // a multiple of tile_n
  int64_t scratch_bytes = 0;

  constexpr int64_t tasks() const { return grid_m * grid_n; }
  Block block(int64_t task, int64_t m, int64_t n) const;
  std::string describe_tasks(int tile_m, int tile_n) const;
};

// The model's cycles of a task.
struct Cost {
  int64_t compute, weights, pack;
  int64_t cycles() const;
  std::string describe() const;
};

Cost task_cost(const Work& work, int64_t rows, int64_t columns, int64_t l2_bytes);
Blocking cut(const Work& work, int64_t l2_bytes, int threads);

// compute(block, scratch) for every task.
template <class Compute>
void run_blocks(const Blocking& blocking, int64_t m, int64_t n, const Parallel& parallel,
                const Compute& compute) {
  WorkStealing tasks(blocking.tasks(), blocking.workers);
  parallel.for_range(blocking.workers, 1, [&](int64_t begin, int64_t end) {
    void* const scratch = thread_scratch(blocking.scratch_bytes);
    int64_t packed_row = -1;  // the rows that scratch holds packed
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
