// The way out where weights are the rows of a product: a warp's sums of 16 features pass through rows in shared memory,
// kRows tokens at a time, so that a lane has eight neighbours to store, and one loop stores what is in many registers.
#pragma once

#include "device/device.h"
#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/kernel.h"
#include "layout/int8_tile.h"

namespace lamina::gemm {

template <int kTokens, class Scaler>
struct StoreRows {
  static constexpr int kTokenGroup = 8, kLaneColumns = 8;
  static constexpr int kRows = kTokens < 32 ? kTokens : 32;
  static constexpr int kRowWords = int8_tile::kTileN;
  static constexpr int kBytes = kRows * kRowWords * 4;  // of a warp

  // Where a warp's sums go: m0, n0 its first output.
  struct Place {
    int64_t m0, n0, partial;
  };

  // Even tokens are the first half of the rows; even features of two rows the first half, of the next two the second:
  // the eight words of four rows that a warp writes at once are in different banks, and so is what eight lanes read.
  LAMINA_DEVICE static uint32_t* word_at(std::byte* rows, int row, int pair, int odd) {
    return reinterpret_cast<uint32_t*>(rows) + row * kRowWords + (odd ^ row / 2 % 2) * 8 + pair;
  }

  // Of each 8 tokens a lane has four sums, those of mma and of wgmma.
  template <class Acc>
  LAMINA_DEVICE static Acc sum_of(const Acc (&sums)[kTokens / 2], int i) {
    return sums[i];
  }
  template <class Acc>
  LAMINA_DEVICE static Acc sum_of(const Acc (&sums)[kTokens / kTokenGroup][4], int i) {
    return sums[i / 4][i % 4];
  }

  // `pair`: of the 16 features, the two that this lane has.
  template <class Sums>
  LAMINA_DEVICE static void stage(std::byte* rows, int chunk, int pair, const Sums& sums) {
    const int g = dev::lane() % 4;
    // Of even and odd features; the pattern repeats every four rows.
    uint32_t* const first[] = {word_at(rows, g, pair, 0), word_at(rows, g, pair, 1)};
#pragma unroll
    for (int c = 0; c < kTokens / kRows; ++c) {
      if (c != chunk) continue;  // registers have no index
#pragma unroll
      for (int at = 0; at < kRows / kTokenGroup; ++at)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int beyond = at * 4 + e * (kRows / 2);  // the row of g
          const int i = (c * (kRows / kTokenGroup) + at) * 4 + e;
#pragma unroll
          for (int odd = 0; odd < 2; ++odd)
            dev::store_shared(first[odd] + beyond * kRowWords,
                              std::bit_cast<uint32_t>(sum_of(sums, i + 2 * odd)));
        }
    }
  }

  // Into the partial of a split, or to the epilogue and out.
  template <bool kToPartial, class P, class Sums>
  LAMINA_DEVICE static void store(const P& p, const Split& split, const Place& at, std::byte* rows,
                                  int pair, const Sums& sums) {
    using Acc = std::remove_all_extents_t<Sums>;
    const int half = dev::lane() % 2;
    const int64_t j = at.n0 + half * kLaneColumns;
    const Columns<Scaler, kLaneColumns> columns(p, j < p.problem.n ? j : 0);
#pragma unroll 1
    for (int chunk = 0; chunk < kTokens / kRows; ++chunk) {
      const int64_t m0 = at.m0 + chunk * kRows;
      if (m0 >= p.problem.m) return;
      dev::warp_sync();  // what was there is read
      stage(rows, chunk, pair, sums);
      dev::warp_sync();
#pragma unroll 1
      for (int row = dev::lane() / 2; row < kRows; row += dev::kWarpLanes / 2) {
        const bool is_odd = row >= kRows / 2;
        const int64_t i = m0 + 2 * row - (is_odd ? kRows - 1 : 0);
        Run<Acc, kLaneColumns> octet;
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const dev::U32x4 four = dev::load_shared(
              reinterpret_cast<const dev::U32x4*>(word_at(rows, row, half * 4, odd)));
#pragma unroll
          for (int e = 0; e < 4; ++e) octet.value[2 * e + odd] = std::bit_cast<Acc>(four.x[e]);
        }
        if (i >= p.problem.m || j >= p.problem.n) continue;
        if constexpr (kToPartial) {
          store_run(partial_at<Acc>(split, p.problem, at.partial, i, j), octet, kLaneColumns);
        } else {
          store_row(p, octet.value, i, columns);
        }
      }
    }
  }
};

}  // namespace lamina::gemm
