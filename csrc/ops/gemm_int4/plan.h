// Which CPU kernel computes a product of packed int4 weights, and how it is cut into blocks and tasks. Pure, host-only.
#pragma once

#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/memo.h"
#include "ops/gemm_int4/problem.h"
#include "ops/gemm_int8/blocking.h"

namespace lamina::gemm_int4 {

using gemm_int8::Block;

inline auto key_of(const Problem& problem) {
  const auto& [m, n, k, group] = problem;
  return memo_key(m, n, k, group);
}

// What one ISA's translation unit offers to the planner and the launcher.
struct CpuKernel {
  const char* name;
  Isa isa;
  int64_t min_m;       // fewest rows it is worth choosing for
  int64_t group_step;  // groups that it knows are multiples, unless there is only one
  int tile_m, tile_n;  // outputs of one microkernel call
  int macs_per_cycle;  // what the ports allow, for the planner's cost model
  // Bytes of 64-byte aligned scratch that compute() needs: for each tile_m rows of a panel, and besides.
  int64_t (*panel_bytes)(const Problem&);
  int64_t scratch_bytes;
  void (*compute)(const void* params, const Block&, void* scratch);
};
using CpuKernels = std::vector<CpuKernel>;  // of one op, ascending by ISA

struct Plan : gemm_int8::Blocking {
  CpuKernel kernel;
};

Plan plan(const CpuKernels& kernels, const Problem& problem, const CpuInfo& cpu, int threads);
// Made once a thread; an op's kernels stay where they are.
Plan known_plan(const CpuKernels& kernels, const Problem& problem, const CpuInfo& cpu, int threads);

// Plans and computes what has been checked. Params: what the kernels' compute takes, with a `problem`.
template <class Params>
Status run(const CpuKernels& kernels, const Params& params, const Parallel& parallel) {
  const Problem& problem = params.problem;
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  if (problem.m == 0 || problem.n == 0) return Status::ok();
  const Plan chosen = known_plan(kernels, problem, cpu, parallel.threads());
  gemm_int8::run_blocks(
      chosen, problem.m, problem.n, parallel,
      [&](const Block& block, void* scratch) { chosen.kernel.compute(&params, block, scratch); });
  return Status::ok();
}

// The plan on this machine, as text.
Status explain(const char* op, const CpuKernels& kernels, const Problem& problem, int threads,
               std::string& text);

}  // namespace lamina::gemm_int4
