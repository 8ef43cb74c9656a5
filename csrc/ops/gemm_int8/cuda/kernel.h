// What a CUDA kernel of gemm_int8 offers to the planner and the launcher.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

// How one launch divides k: split s owns `steps_per_split` steps of Tile::step_k from s * steps_per_split.
struct Split {
  int count = 1;
  int steps = 1;               // of each split
  int32_t* partial = nullptr;  // [count][m][partial_stride(n)] sums, used when count > 1
};

constexpr int64_t partial_stride(int64_t n) { return (n + 7) / 8 * 8; }

constexpr int32_t* partial_at(const Split& split, const Problem& p, int64_t s, int64_t i,
                              int64_t j) {
  return split.partial + (s * p.m + i) * partial_stride(p.n) + j;
}

struct CudaKernel {
  const char* name;
  int arch;            // compute capability from which it runs: 80
  int tile_m, tile_n;  // outputs of a block
  int step_k;          // input features of a step of the ring
  int blocks_per_sm;
  Status (*launch)(const Params&, const Split&, void* stream);
};

// out from the partial sums.
Status launch_reduce(const Params& params, const Split& split, void* stream);

}  // namespace lamina::gemm_int8
