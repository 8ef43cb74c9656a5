// What a CUDA kernel of gemm_int8 offers to the planner and the launcher.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

// How the launches of a call divide k: split s owns `steps` steps of CudaKernel::step_k from s * steps.
struct Split {
  int count = 1;
  int steps = 1;            // of each split; with scales along k whole segments
  void* partial = nullptr;  // [slabs][m][partial_stride(n)] sums, used when count > 1
  bool overlaps = false;    // launches after the first may start under the one before

  // Whether the product lets the reduction start.
  constexpr bool lets_start() const { return overlaps && count > 1; }
};

// Whether they may: where all run code of sm_90a, and not where a cap would count the SMs of two.
constexpr bool may_overlap(int kernel_arch, bool is_capped) {
  return kernel_arch == 90 && !is_capped;
}

// With scales along k each segment has a sum of its own, f32; without, each split has one, int32.
constexpr int64_t slabs(const Split& split, const Problem& p) {
  return p.is_grouped ? ceil_div(p.groups(), kSegmentGroups) : split.count;
}

constexpr int64_t partial_stride(int64_t n) { return (n + 7) / 8 * 8; }

template <class T, class P>
constexpr T* partial_at(const Split& split, const P& p, int64_t slab, int64_t i, int64_t j) {
  return static_cast<T*>(split.partial) + (slab * p.m + i) * partial_stride(p.n) + j;
}

struct CudaKernel {
  const char* name;
  int arch;            // compute capability: 80 and newer, or 90 alone
  int tile_m, tile_n;  // outputs of a block
  int step_k;          // input features of a step of the ring
  int blocks_per_sm;   // that its registers allow
  int smem_bytes;      // of a block
  int cluster;         // blocks that fetch their rows of a together
  int a_alignment;     // of row_alignment, that it needs
  int macs_per_cycle;  // of an SM, at best
  int step_cycles;     // barrier and latency of a step that nothing hides
  bool is_grouped;     // for scales along k, or for none
  bool is_persistent;  // a block an SM, that takes tiles until none is left
  // At most max_blocks blocks, at least `cluster`.
  Status (*launch)(const Params&, const Split&, int max_blocks, void* stream);

  bool runs_on(int compute_capability) const {
    return arch == 90 ? compute_capability == 90 : compute_capability >= arch;
  }
};

// Bytes, a power of two up to 16, at whose multiples all rows start. Rows that overlap count as
// unaligned, TMA may refuse them, and so do rows further apart than it can tell.
inline int row_alignment(const void* data, int64_t rows, int64_t row_bytes, int64_t stride_bytes) {
  constexpr int64_t kTmaStride = int64_t{1} << 40;
  const bool is_one_row = rows <= 1;
  if (!is_one_row && (stride_bytes < row_bytes || stride_bytes >= kTmaStride)) return 1;
  const uint64_t low = reinterpret_cast<uintptr_t>(data) |
                       (is_one_row ? 0 : static_cast<uint64_t>(stride_bytes)) | 16;
  return static_cast<int>(low & ~(low - 1));
}

// Of the rows of a.
inline int row_alignment(const Params& p) {
  return row_alignment(p.a, p.problem.m, p.problem.k, p.a_stride);
}

// out from the partial sums.
Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream);

}  // namespace lamina::gemm_int8
