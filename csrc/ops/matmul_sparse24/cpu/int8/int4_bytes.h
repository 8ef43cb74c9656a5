// The weights of a block of k as bytes in L1, in the order of 2:4 int8 weights. A byte is code - 8; without zero points
// that is the weight before its scale. Each ISA compiles its own copy: gemm/cpu/int8_nest.h says why.
#pragma once

#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

inline constexpr int kLineBytes = 64, kHalfK = sparse24_rows::kSpanK / 2;

// Scratch of a strip of columns; int4_nest.h says what a Tile has.
template <class Tile>
struct BlockBytes {
  static constexpr int kTileN = Tile::kTileN;
  static constexpr int64_t kStride = kBlockTilesK * kTileBytes;

  // Weights, and the sums over each column of the current group.
  struct Bytes {
    alignas(64) int8_t tiles[kTileN / int8_tile::kTileN * kStride];
    alignas(64) int32_t sums[kTileN];
  };
  Bytes codes, kept;  // kept: 1 in place of each code, for zero points

  // Half a span: 16 input features of 16 columns. A group may begin in the middle of a span, so the first half in
  // memory may become the second half in L1, and the reverse.
  struct Half {
    const uint8_t* from;   // the span
    bool is_second_there;  // in memory
    int8_t* to;            // the span
    bool is_second_here;   // in L1

    int8_t* values() const {
      return to + sparse24_rows::kIndexBytes + (is_second_here ? 2 * kLineBytes : 0);
    }
  };

  LAMINA_NOINLINE static void expand_indices(const uint8_t* __restrict from, bool is_second_there,
                                             uint8_t* __restrict to, bool is_second_here) {
    const int right = is_second_there ? 4 : 0, left = is_second_here ? 4 : 0;
    for (int i = 0; i < kLineBytes; ++i) {
      const int index = (from[i] >> right & 15) << left;
      to[i] = static_cast<uint8_t>(is_second_here ? to[i] | index : index);
    }
  }

  LAMINA_NOINLINE static void expand_codes(const uint8_t* __restrict from, int8_t* __restrict to) {
    for (int i = 0; i < kLineBytes; ++i)
      to[i] = static_cast<int8_t>((from[i] & 15) - kSymmetricZeroPoint);
    for (int i = 0; i < kLineBytes; ++i)
      to[kLineBytes + i] = static_cast<int8_t>((from[i] >> 4) - kSymmetricZeroPoint);
  }

  // Expands one half, of which `valid` input features lie before the end of k; the rest becomes 0.
  void expand(const Half& half, int64_t valid, int8_t* kept_span, int column) {
    const uint8_t* const packed =
        half.from + sparse24_rows::kIndexBytes + (half.is_second_there ? kLineBytes : 0);
    int8_t* const values = half.values();
    expand_indices(half.from, half.is_second_there, reinterpret_cast<uint8_t*>(half.to),
                   half.is_second_here);
    expand_codes(packed, values);
    const auto clear_padding = [&](int8_t* bytes) {
      for (int64_t i = 0; i < 2 * kLineBytes; ++i) {
        const int64_t k = i / kLineBytes * sparse24_rows::kStepK + i % 4 / 2 * 4;
        if (k >= valid) bytes[i] = 0;
      }
    };
    if (valid < kHalfK) clear_padding(values);
    for (int step = 0; step < 2; ++step)
      Tile::add_sums(values + step * kLineBytes, codes.sums + column);
    if (!kept_span) return;
    std::copy_n(half.to, sparse24_rows::kIndexBytes, kept_span);
    int8_t* const ones = kept_span + (values - half.to);
    std::fill_n(ones, 2 * kLineBytes, int8_t{1});
    if (valid < kHalfK) clear_padding(ones);
    for (int step = 0; step < 2; ++step)
      Tile::add_sums(ones + step * kLineBytes, kept.sums + column);
  }

  // Expands the whole spans of [k0, k1) that lie in whole spans of the packed weight. Returns where they end.
  int64_t expand_whole_spans(const uint8_t* w, int tile, int64_t k0, int64_t k1, bool has_zeros,
                             bool needs_sums) {
    constexpr int64_t kSpanK = sparse24_rows::kSpanK;
    if (k0 % kSpanK != 0) return k0;
    const int64_t spans = (k1 - k0) / kSpanK, column = tile * int8_tile::kTileN;
    int8_t* const to = codes.tiles + tile * kStride;
    Tile::expand_spans(w + k0 / kSpanK * kCodeSpanBytes, spans, to,
                       needs_sums ? codes.sums + column : nullptr);
    if (has_zeros) {
      for (int64_t i = 0; i < spans; ++i) {
        int8_t* const kept_span = kept.tiles + tile * kStride + i * kSpanBytes;
        std::copy_n(to + i * kSpanBytes, sparse24_rows::kIndexBytes, kept_span);
        std::fill_n(kept_span + sparse24_rows::kIndexBytes, 4 * kLineBytes, int8_t{1});
      }
      for (int j = 0; j < int8_tile::kTileN; ++j)
        kept.sums[column + j] += static_cast<int32_t>(spans * kSpanK / 2);
    }
    return k0 + spans * kSpanK;
  }

  // Expands input features [k0, k1) of a group to tiles in L1. Past k1 the last tile is 0.
  void expand_block(const uint8_t* w, int64_t w_stride, int tiles_n, int64_t k0, int64_t k1,
                    bool has_zeros, bool needs_sums) {
    for (int t = 0; t < tiles_n; ++t) {
      const uint8_t* const tile = w + t * w_stride;
      const int64_t end = k0 + round_up(k1 - k0, int8_tile::kTileK);
      for (int64_t k = expand_whole_spans(tile, t, k0, k1, has_zeros, needs_sums); k < end;
           k += kHalfK) {
        const int64_t span = t * kStride + (k - k0) / sparse24_rows::kSpanK * kSpanBytes;
        const bool is_second_here = (k - k0) / kHalfK % 2 == 1;
        if (k >= k1) {
          clear_half(span, is_second_here);
          continue;
        }
        const Half half{tile + k / sparse24_rows::kSpanK * kCodeSpanBytes, k / kHalfK % 2 == 1,
                        codes.tiles + span, is_second_here};
        expand(half, k1 - k, has_zeros ? kept.tiles + span : nullptr, t * int8_tile::kTileN);
      }
    }
  }

  // Zero weights with any valid index.
  void clear_half(int64_t span, bool is_second) {
    for (Bytes* bytes : {&codes, &kept}) {
      int8_t* const to = bytes->tiles + span;
      if (!is_second) std::fill_n(to, sparse24_rows::kIndexBytes, int8_t{0});
      std::fill_n(to + sparse24_rows::kIndexBytes + (is_second ? 2 * kLineBytes : 0),
                  2 * kLineBytes, int8_t{0});
    }
  }
};

}  // namespace
}  // namespace lamina::matmul_sparse24
