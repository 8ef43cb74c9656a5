// What one ISA's translation unit offers to the planner and the launcher.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ops/gemm_int8/blocking.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

struct CpuKernel {
  const char* name;
  Isa isa;
  int64_t min_m;
  int tile_m, tile_n;  // outputs of one microkernel call
  int packed_bytes;    // of tile_m packed rows of one tile of k
  int macs_per_cycle;  // what the ports allow, for the planner's cost model
  // Bytes of 64-byte aligned scratch that compute() needs for panels of panel_m rows.
  int64_t (*scratch_bytes)(int64_t panel_m, const Problem&);
  void (*compute)(const Params&, const Block&, void* scratch);
};

}  // namespace lamina::gemm_int8
