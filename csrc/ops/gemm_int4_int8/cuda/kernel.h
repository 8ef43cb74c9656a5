// What a CUDA kernel of gemm_int4_int8 offers to the planner and the launcher, and what lies in the workspace of a call.
#pragma once

#include <optional>

#include "base/numeric.h"
#include "base/status.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "ops/gemm_int8/cuda/kernel.h"

namespace lamina::gemm_int4_int8 {

using gemm_int8::Split;  // its slabs: those of slabs() here

// One group's sums are integers, of any part of k: each split has one. Sums of more groups are f32: each segment has one.
constexpr bool is_one_group(const Problem& p) { return p.groups() == 1; }
constexpr int64_t slabs(const Split& split, const Problem& p) {
  return is_one_group(p) ? split.count : ceil_div(p.k, segment_k(p.group));
}

// Where k may be split.
constexpr int64_t split_k(const Problem& p) {
  return is_one_group(p) ? kSegmentK : segment_k(p.group);
}

// a that the call quantises, [m, k] in place of Params::a, in rows of Params::a_stride.
struct Floats {
  const void* data;
  DType dtype;
};

// a as kernels read it, made by a launch of its own.
struct Prepared {
  int8_t*
      a;  // [m, a_stride], each 16 of k in the order of int4::s8_k; what nothing claims is the zero point
  int32_t* sums;  // [groups, sums_stride] of a less its zero points
  float* scale;   // [m]; NaN throughout where perm has a feature that there is not

  // Strides and sizes: multiples of 16 bytes.
  static constexpr int64_t a_stride(const Problem& p) { return int4::tiles_k(p.k) * int4::kTileK; }
  static constexpr int64_t sums_stride(const Problem& p) { return round_up(p.m, 4); }
  static constexpr int64_t a_bytes(const Problem& p) { return p.m * a_stride(p); }
  static constexpr int64_t sums_bytes(const Problem& p) { return p.groups() * sums_stride(p) * 4; }
  static constexpr int64_t bytes(const Problem& p) {
    return a_bytes(p) + sums_bytes(p) + sums_stride(p) * 4;
  }
  static Prepared at(std::byte* workspace, const Problem& p) {
    std::byte* const sums = workspace + a_bytes(p);
    return {reinterpret_cast<int8_t*>(workspace), reinterpret_cast<int32_t*>(sums),
            reinterpret_cast<float*>(sums + sums_bytes(p))};
  }
};

// What a kernel, and the reduction, take.
struct CudaParams : gemm_int8::Output {
  Problem problem;
  const int8_t* a;           // of Prepared
  const int32_t* a_sums;     // of Prepared
  const float* token_scale;  // of Prepared
  Broadcast<int8_t> a_zero_point;
  const uint8_t* w;
  OfGroups w_scale, w_zero_point;
};

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
  Status (*launch)(const CudaParams&, const Split&, int max_blocks, void* stream);

  bool runs_on(int compute_capability) const {
    return arch == 90 ? compute_capability == 90 : compute_capability >= arch;
  }
};

// a, or floats in its place, as the kernels read it.
Status launch_prepare(const Params& params, const std::optional<Floats>& floats, const Prepared& to,
                      int max_blocks, void* stream);
// out from the partial sums.
Status launch_reduce(const CudaParams& params, const Split& split, int max_blocks, void* stream);

}  // namespace lamina::gemm_int4_int8
