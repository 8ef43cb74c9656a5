// A CUDA kernel of a product, as the planner and the launcher see it.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "gemm/problem.h"

namespace lamina::gemm {

// A division of k among the blocks of a call: split s owns `steps` steps of CudaKernel::step_k, from step s * steps
// on. With more than one split the blocks store partial sums, and a second launch reduces them to the result.
struct Split {
  int count = 1;
  int steps = 1;             // steps of each split
  void* partials = nullptr;  // [number of partial sums][m][partial_stride(n)], used when count > 1
  bool overlaps = false;     // a launch may start while the launch before still runs

  // Whether the product kernel lets the reduction start early.
  constexpr bool lets_start() const { return overlaps && count > 1; }
};

// Launches may overlap if all kernels of the call are written for sm_90. They may not overlap under a cap on SMs,
// because two launches at once would occupy twice as many SMs.
constexpr bool may_overlap(int kernel_arch, bool is_capped) {
  return kernel_arch == 90 && !is_capped;
}

constexpr int64_t partial_stride(int64_t n) { return (n + 7) / 8 * 8; }

template <class T>
constexpr T* partial_at(const Split& split, const Problem& p, int64_t partial, int64_t i,
                        int64_t j) {
  return static_cast<T*>(split.partials) + (partial * p.m + i) * partial_stride(p.n) + j;
}

struct CudaKernel {
  const char* name;
  int arch;                    // compute capability: 80 and newer, or 90 alone
  int tile_m, tile_n;          // outputs of a block
  int step_k;                  // input features of a ring step
  int blocks_per_sm;           // upper limit set by the registers
  int smem_bytes;              // shared memory of a block
  int cluster = 1;             // blocks that fetch their rows of a together
  int a_alignment = 1;         // required alignment of the rows of a, in bytes
  int macs_per_cycle;          // peak rate of an SM
  int step_cycles;             // barrier and latency of a step that nothing hides
  bool is_persistent = false;  // one block an SM, which takes tiles until none is left
  // Launches at most max_blocks blocks, but at least `cluster`. params: the Params of the op.
  Status (*launch)(const void* params, const Split&, int max_blocks, void* stream);

  bool runs_on(int compute_capability) const {
    return arch == 90 ? compute_capability == 90 : compute_capability >= arch;
  }
};

// Wraps a typed launcher kStart as a CudaKernel::launch.
template <class Params, Status (*kStart)(const Params&, const Split&, int, void*)>
Status launch_as(const void* params, const Split& split, int max_blocks, void* stream) {
  return kStart(*static_cast<const Params*>(params), split, max_blocks, stream);
}

}  // namespace lamina::gemm
