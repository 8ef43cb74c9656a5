// The CPU planner: chooses the kernel of a product and cuts the product into blocks and tasks. Pure, host-only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/parallel.h"
#include "gemm/cpu/blocking.h"
#include "gemm/problem.h"

namespace lamina::gemm {

// A CPU kernel, one for each op and ISA, as the planner and the launcher see it. The file of a kernel defines its record as
// constant data: a function that returned it would be compiled for the ISA, and every machine would have to run it.
struct CpuKernel {
  const char* name;
  Isa isa;
  int64_t min_m;           // fewest rows for which the kernel is worth choosing; kernels.inc has it
  int64_t group_step = 1;  // where k has several groups, their size must be a multiple of this
  bool needs_bf16 = false;  // computes only problems that are bf16
  int tile_m, tile_n;       // outputs of one microkernel call
  int macs_per_cycle;       // the bound of the ports, for the planner's cost model
  // Each panel of rows expands the weights once, which takes as long as to multiply this many rows. 0: the kernel reads
  // packed weights without expanding them, or its panels stay within L2.
  int expand_rows = 0;
  // compute() needs 64-byte aligned scratch: panel_bytes() for each tile_m rows of a panel, and scratch_bytes besides.
  int64_t (*panel_bytes)(const Problem&);
  int64_t scratch_bytes = 0;
  void (*compute)(const void* params, const Block&, void* scratch);
};

// The kernels of one op in this build, ascending by ISA. The object must outlive every call, because its address is
// part of the key of a plan.
struct CpuOp {
  const char* name;
  double code_bytes;  // bytes of one weight without its scale
  std::vector<CpuKernel> kernels;
};

struct Plan : Blocking {
  CpuKernel kernel;
};

Plan plan(const CpuOp& op, const Problem& problem, const CpuInfo& cpu, int threads);
Plan known_plan(const CpuOp& op, const Problem& problem, const CpuInfo& cpu,
                int threads);  // the same plan, kept by each thread

// Plans and computes a product whose arguments are checked already. Params: the op's parameters, with a member
// `problem`.
template <class Params>
Status run(const CpuOp& op, const Params& params, const Parallel& parallel) {
  const Problem& problem = params.problem;
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  if (problem.m == 0 || problem.n == 0) return Status::ok();
  const Plan chosen = known_plan(op, problem, cpu, parallel.threads());
  run_blocks(chosen, problem.m, problem.n, parallel, [&](const Block& block, void* scratch) {
    chosen.kernel.compute(&params, block, scratch);
  });
  return Status::ok();
}

inline CpuKernel with_min_m(CpuKernel kernel, int64_t min_m) {
  kernel.min_m = min_m;
  return kernel;
}

// The record of a kernel that computes a block with Nest(params, block, scratch).run(). Nest: the op's loop nest
// around the microkernel Tile.
template <class Nest, class Tile, class Params>
constexpr CpuKernel cpu_kernel(const char* name, Isa isa, int macs_per_cycle) {
  CpuKernel kernel{};
  kernel.name = name;
  kernel.isa = isa;
  kernel.tile_m = Tile::kTileM;
  kernel.tile_n = Tile::kTileN;
  kernel.macs_per_cycle = macs_per_cycle;
  kernel.panel_bytes = &Nest::panel_bytes;
  kernel.compute = [](const void* params, const Block& block, void* scratch) {
    Nest(*static_cast<const Params*>(params), block, scratch).run();
  };
  return kernel;
}

// Describes the plan on this machine in `text`.
Status explain(const CpuOp& op, const Problem& problem, int threads, std::string& text);

}  // namespace lamina::gemm
