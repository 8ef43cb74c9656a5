// What a CUDA kernel of gemm_int4_int8 offers to the planner and the launcher, and what lies in the workspace of a call.
#pragma once

#include "base/numeric.h"
#include "base/status.h"
#include "gemm/cuda/plan.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"

namespace lamina::gemm_int4_int8 {

// The sums of one group are integers, of any part of k: each split has a partial sum. Sums over several groups are f32:
// each k chunk has one.
constexpr bool is_one_group(const Problem& p) { return p.groups() == 1; }
constexpr KRule k_rule(const Problem& p) {
  return is_one_group(p) ? KRule{kChunkK, false} : KRule{chunk_k(p.group), true};
}
constexpr int64_t count_partials(const Split& split, const Problem& p) {
  return is_one_group(p) ? split.count : ceil_div(p.k, chunk_k(p.group));
}

// a as kernels read it, made by a launch of its own.
struct PackedActivations {
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
  static PackedActivations at(std::byte* workspace, const Problem& p) {
    std::byte* const sums = workspace + a_bytes(p);
    return {reinterpret_cast<int8_t*>(workspace), reinterpret_cast<int32_t*>(sums),
            reinterpret_cast<float*>(sums + sums_bytes(p))};
  }
};

// What a kernel, and the reduction, take.
struct CudaParams : Epilogue {
  Problem problem;
  const int8_t* a;           // of PackedActivations
  const int32_t* a_sums;     // of PackedActivations
  const float* token_scale;  // of PackedActivations
  Broadcast<int8_t> a_zero_point;
  const uint8_t* w;
  GroupTensor w_scale, w_zero_point;
};

// a, or the floats in its place, as the kernels read them.
Status launch_pack_activations(const Params& params, const PackedActivations& to, int max_blocks,
                               void* stream);
// out from the partial sums.
Status launch_reduce(const CudaParams& params, const Split& split, int max_blocks, void* stream);

}  // namespace lamina::gemm_int4_int8
