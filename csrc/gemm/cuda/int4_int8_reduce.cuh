// The reduction of int8 activations and int4 codes: gemm/cuda/reduce.cuh in f32. The partial sums of a single group are
// integers, scaled here.
//
// Budget     <= 128 regs; 0 spills
#pragma once

#include <cmath>

#include "gemm/cuda/int4_int8.h"
#include "gemm/cuda/reduce.cuh"
#include "gemm/cuda/token_scaler.cuh"

namespace lamina::gemm {

// The value of the only group for column j.
LAMINA_DEVICE float value_of(const GroupTensor& of, int64_t j) {
  const int64_t at = j * of.stride;
  if (of.kind == GroupTensor::Kind::kF32) return static_cast<const float*>(of.data)[at];
  if (of.kind == GroupTensor::Kind::kF16) return to_f32(static_cast<const F16*>(of.data)[at]);
  if (of.kind == GroupTensor::Kind::kBF16) return to_f32(static_cast<const BF16*>(of.data)[at]);
  return static_cast<const uint8_t*>(of.data)[at];
}

// kIsSparse: the partial sums are of codes minus 8; with zero points k is not split within a group.
template <bool kIsSparse>
struct Int4Int8Reduce {
  static constexpr const char* kName =
      kIsSparse ? "matmul_sparse24_int4_int8_reduce" : "gemm_int4_int8_reduce";

  LAMINA_DEVICE static void reduce(const Int4Int8Operands& p, const Split& split, int64_t i,
                                   int64_t j) {
    const int64_t count = count_partials(split, p.problem);
    if (!is_one_group(p.problem))
      return reduce_columns<TokenScaler, float, float>(p, split, count, i, j);
    int32_t sums[kReduceColumns];
    add_partials<int32_t>(p, split, count, i, j, sums);
    const Columns<TokenScaler, kReduceColumns> columns(p, j);
    const int32_t a_sum = kIsSparse ? 0 : dev::load_global(p.a_sums + i);
    float y[kReduceColumns];
#pragma unroll
    for (int e = 0; e < kReduceColumns; ++e) {
      const int64_t column = e < columns.left ? j + e : j;
      const bool has_zeros = p.w_zero_point.is_given();
      const float minus_zero = has_zeros ? -value_of(p.w_zero_point, column) : 0.0f;
      y[e] = add_group(sums[e], a_sum, has_zeros, minus_zero, value_of(p.w_scale, column), kNoSum);
    }
    store_row(p, y, i, columns);
  }
};

}  // namespace lamina::gemm
