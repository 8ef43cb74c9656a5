// Which kernel computes a gemm_int8 problem, and how it is cut into blocks and tasks. Pure,
// host-only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "ops/gemm_int8/cpu/kernel.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

// A grid_m x grid_n grid of tasks; a task owns block_m x block_n outputs over the whole k. Workers
// have ranges of tasks and take from others' when theirs are done (base/task_ranges.h).
struct Plan {
  CpuKernel kernel;
  int64_t workers = 0;  // threads worth waking, at most tasks()
  int64_t grid_m = 0;
  int64_t grid_n = 0;
  int64_t block_m = 0;  // a multiple of kernel.tile_m; packed, these rows of a stay in L2
  int64_t block_n = 0;  // a multiple of kernel.tile_n
  int64_t scratch_bytes = 0;

  int64_t tasks() const { return grid_m * grid_n; }
  Block block(int64_t task, const Problem& problem) const;
  std::string describe(const Problem& problem, const CpuInfo& cpu) const;
};

// Every kernel in this build, ascending by ISA.
const std::vector<CpuKernel>& kernels();

Status check(const Problem& problem);
Plan plan(const Problem& problem, const CpuInfo& cpu, int threads);

}  // namespace lamina::gemm_int8
