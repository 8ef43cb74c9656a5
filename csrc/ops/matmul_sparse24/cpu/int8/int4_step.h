// The arguments of a Tile's add_groups(), and the scaling of groups with zero points, which the Tile does not scale.
// Each ISA compiles its own copy: gemm/cpu/int8_nest.h says why.
#pragma once

#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

// y += the scaled sums of a group of codes with zero points; kept[j] is the sum of the activations that column j keeps.
// Not inlined, for the reason in gemm/cpu/row_steps.h.
LAMINA_NOINLINE void add_zero_points(const int32_t* __restrict acc, const int32_t* __restrict kept,
                                     int32_t zero, const int32_t* __restrict sum,
                                     const int32_t* __restrict count,
                                     const float* __restrict minus_zero,
                                     const float* __restrict scale, int columns,
                                     float* __restrict y) {
  for (int j = 0; j < columns; ++j) {
    const int32_t a_sum = correct(kept[j], zero, count[j]);
    const int32_t with_codes = correct(acc[j], -kSymmetricZeroPoint, a_sum);
    const float x = std::fma(minus_zero[j], static_cast<float>(a_sum),
                             static_cast<float>(correct(with_codes, zero, sum[j])));
    y[j] = std::fma(x, scale[j], y[j]);
  }
}

// A Tile that reads codes passes a k chunk of some columns, then the same k chunk of the other columns of the strip.
// The prefetches for each column of tiles run a k chunk ahead: a third of this distance takes 1.21 times as long for
// one row and 1.17 times for four rows (2026-11, Zen 4, AVX-512, 8192 x 8192).
inline constexpr int64_t kChunkAhead = kChunkK / sparse24_rows::kSpanK * kCodeSpanBytes;

// The arguments of one add_groups(), which computes acc (+)= the sums of a block of k of a group for a panel of rows and,
// where the group ends, y += those sums, corrected and scaled.
struct GroupStep {
  int rows;
  const int8_t* a;       // packed
  const uint8_t* w;      // spans of codes or of int8 weights
  bool are_codes;        // then the weights are still to be added to `sums`
  int64_t w_stride;      // bytes between tiles of adjacent n
  int64_t w_left;        // bytes of codes from w to the end of a tile's k
  int tiles_n;           // of 16 columns
  int64_t spans;         // of k
  int32_t* acc;          // [rows][kTileN]
  bool accumulate;       // whether the group began in a block before
  bool ends;             // whether the group ends here; only then y changes
  int32_t* sums;         // of the weights of each column in this group
  bool has_zero;         // else `zero` is kOffset for all rows
  const int32_t* zero;   // [rows] kOffset + zero point: the excess of each activation of a row
  const float* scale;    // of each column
  float* y;              // [rows][kTileN]
  int64_t groups;        // adjacent groups along k; more than one only with codes of whole groups
  int64_t a_stride;      // bytes between the activations of adjacent groups
  int64_t scale_stride;  // numbers between the scales of adjacent groups

  // Bytes by which the prefetches of the codes of a group run ahead: near the end of a tile's k they go to the same tile of
  // the next strip, which belongs to this task or most likely to the next task.
  int64_t codes_ahead(int64_t group, int strip) const {
    const int64_t left = w_left - group * spans * kCodeSpanBytes;
    return left > kChunkAhead ? kChunkAhead
                              : kChunkAhead + (strip / sparse24_rows::kTileN - 1) * w_stride;
  }
};

}  // namespace
}  // namespace lamina::matmul_sparse24
