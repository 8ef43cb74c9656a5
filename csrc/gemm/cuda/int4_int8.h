// The operands of the CUDA kernels of int8 activations and int4 codes, and the workspace of a call.
#pragma once

#include <cstddef>

#include "base/broadcast.h"
#include "base/status.h"
#include "gemm/cuda/plan.h"
#include "gemm/epilogue.h"
#include "gemm/int4_int8_sums.h"
#include "quant/group_tensor.h"

namespace lamina::gemm {

// With a single group, partial sums are integers, and k may be split anywhere: one partial sum for each split. With
// several groups, partial sums are f32: one for each k chunk.
constexpr bool is_one_group(const Problem& p) { return p.groups() == 1; }
constexpr KRule int4_int8_k_rule(const Problem& p) {
  return is_one_group(p) ? KRule{kChunkK, false} : KRule{chunk_k(p.group), true};
}
constexpr int64_t count_partials(const Split& split, const Problem& p) {
  return is_one_group(p) ? split.count : ceil_div(p.k, chunk_k(p.group));
}

// The activations in the order that the kernels read. A launch of its own packs them.
//
//   a      [m, a_stride], each 16 k in the order of int4::s8_k, for 2:4 weights each 32 k in that of
//          sparse24_tile::s8_k; a packed place without a feature holds the zero point
//   sums   [groups, sums_stride], sums of a minus its zero points
//   scale  [m]; all NaN if an index in perm is out of range
struct PackedActivations {
  int8_t* a;
  int32_t* sums;
  float* scale;

  // All strides and sizes are multiples of 16 bytes.
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

// The parameters of a kernel and of the reduction.
struct Int4Int8Operands : Epilogue {
  Problem problem;
  const int8_t* a;           // PackedActivations::a
  const int32_t* a_sums;     // PackedActivations::sums
  const float* token_scale;  // PackedActivations::scale
  Broadcast<int8_t> a_zero_point;
  const uint8_t* w;
  GroupTensor w_scale, w_zero_point;

  // params: the Params of an op.
  static Int4Int8Operands of(const auto& params, const PackedActivations& packed) {
    return {params,      params.problem, packed.a,
            packed.sums, packed.scale,   params.a_zero_point,
            params.w,    params.w_scale, params.w_zero_point};
  }
};

}  // namespace lamina::gemm
