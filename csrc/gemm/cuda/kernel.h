// What a CUDA kernel of a product offers to the planner and the launcher.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "gemm/problem.h"

namespace lamina::gemm {

// How the blocks of a call divide k: split s owns `steps` steps of CudaKernel::step_k, from step s * steps on. Its sums
// are partial sums, which a second launch reduces to the result, where there is more than one split.
struct Split {
  int count = 1;
  int steps = 1;             // of each split
  void* partials = nullptr;  // [number of partial sums][m][partial_stride(n)], used when count > 1
  bool overlaps = false;     // launches after the first may start while the one before still runs

  // Whether the product lets the reduction start.
  constexpr bool lets_start() const { return overlaps && count > 1; }
};

// Launches may overlap where all kernels of a call are written for sm_90, and not under a cap on SMs: two launches would
// occupy the SMs of two.
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
  int step_k;                  // input features of a step of the ring
  int blocks_per_sm;           // that its registers allow
  int smem_bytes;              // of a block
  int cluster = 1;             // blocks that fetch their rows of a together
  int a_alignment = 1;         // of the rows of a (block/row_alignment.h), that it needs
  int macs_per_cycle;          // of an SM, at best
  int step_cycles;             // barrier and latency of a step that nothing hides
  bool is_persistent = false;  // a block an SM, that takes tiles until none is left
  // At most max_blocks blocks, at least `cluster`. params: what the kernels of the op take.
  Status (*launch)(const void* params, const Split&, int max_blocks, void* stream);

  bool runs_on(int compute_capability) const {
    return arch == 90 ? compute_capability == 90 : compute_capability >= arch;
  }
};

// kStart as CudaKernel::launch.
template <class Params, Status (*kStart)(const Params&, const Split&, int, void*)>
Status launch_as(const void* params, const Split& split, int max_blocks, void* stream) {
  return kStart(*static_cast<const Params*>(params), split, max_blocks, stream);
}

}  // namespace lamina::gemm
