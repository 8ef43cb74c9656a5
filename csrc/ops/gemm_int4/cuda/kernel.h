// What a CUDA kernel of gemm_int4 offers to the planner and the launcher.
#pragma once

#include "base/status.h"
#include "ops/gemm_int4/gemm_int4.h"
#include "ops/gemm_int8/cuda/kernel.h"

namespace lamina::gemm_int4 {

using gemm_int8::Split;  // its slabs: those of slabs() here

// Each segment has a sum of its own.
constexpr int64_t slabs(const Problem& p) { return ceil_div(p.k, kSegmentK); }

struct CudaKernel {
  const char* name;
  int arch;            // compute capability: 80 and newer, or 90 alone
  int tile_m, tile_n;  // outputs of a block
  int step_k;          // input features of a step of the ring
  int blocks_per_sm;   // that its registers allow
  int smem_bytes;      // of a block
  int cluster;         // blocks that fetch their rows of a together
  int macs_per_cycle;  // of an SM, at best
  int step_cycles;     // barrier and latency of a step that nothing hides
  bool is_persistent;  // a block an SM, that takes tiles until none is left
  // At most max_blocks blocks, at least `cluster`.
  Status (*launch)(const Params&, const Split&, int max_blocks, void* stream);

  bool runs_on(int compute_capability) const {
    return arch == 90 ? compute_capability == 90 : compute_capability >= arch;
  }
};

// What of a row of a can be copied at once: 16, 4 or 1 bytes.
inline int a_copy_bytes(const Params& params) {
  if (params.perm.is_given()) return 1;
  const Problem& p = params.problem;
  const int alignment = gemm_int8::row_alignment(params.a, p.m, p.k * 2, params.a_stride * 2);
  return alignment >= 16 ? 16 : alignment >= 4 ? 4 : 1;
}

// out from the partial sums.
Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream);

}  // namespace lamina::gemm_int4
