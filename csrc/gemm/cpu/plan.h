// Which CPU kernel computes a product, and how the product is cut into blocks and tasks. Pure, host-only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/parallel.h"
#include "gemm/cpu/blocking.h"
#include "gemm/problem.h"

namespace lamina::gemm {

// What one ISA's translation unit offers to the planner and the launcher.
struct CpuKernel {
  const char* name;
  Isa isa;
  int64_t min_m;           // fewest rows it is worth choosing for
  int64_t group_step = 1;  // several groups must be multiples of it
  int tile_m, tile_n;      // outputs of one microkernel call
  int macs_per_cycle;      // what the ports allow, for the planner's cost model
  // Bytes of 64-byte aligned scratch that compute() needs: for each tile_m rows of a panel, and besides.
  int64_t (*panel_bytes)(const Problem&);
  int64_t scratch_bytes = 0;
  void (*compute)(const void* params, const Block&, void* scratch);
};

// The kernels of one op in this build, ascending by ISA. The object outlives every call: its address is part of the key
// of a plan.
struct CpuOp {
  const char* name;
  double code_bytes;  // of a weight, without its scale
  std::vector<CpuKernel> kernels;
};

struct Plan : Blocking {
  CpuKernel kernel;
};

Plan plan(const CpuOp& op, const Problem& problem, const CpuInfo& cpu, int threads);
Plan known_plan(const CpuOp& op, const Problem& problem, const CpuInfo& cpu,
                int threads);  // made once a thread

// Plans and computes a product whose arguments are checked. Params has a `problem`, and is what the kernels of the op take.
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

// The record of a kernel whose loop nest is Nest, a template of Tile: Nest(params, block, scratch).run().
template <class Nest, class Tile, class Params>
CpuKernel cpu_kernel(const char* name, Isa isa, int64_t min_m, int macs_per_cycle) {
  CpuKernel kernel{};
  kernel.name = name;
  kernel.isa = isa;
  kernel.min_m = min_m;
  kernel.tile_m = Tile::kTileM;
  kernel.tile_n = Tile::kTileN;
  kernel.macs_per_cycle = macs_per_cycle;
  kernel.panel_bytes = &Nest::panel_bytes;
  kernel.compute = [](const void* params, const Block& block, void* scratch) {
    Nest(*static_cast<const Params*>(params), block, scratch).run();
  };
  return kernel;
}

// The plan on this machine, as text.
Status explain(const CpuOp& op, const Problem& problem, int threads, std::string& text);

}  // namespace lamina::gemm
