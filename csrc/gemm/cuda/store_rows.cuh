// Stores the sums of kernels whose mma has features as rows and tokens as columns. A warp's sums of 16 features are
// transposed through shared memory, kRows tokens at a time. A lane then has eight neighbouring features of one token to
// store, and one short loop stores the sums of many registers.
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
  static constexpr int kBytes = kRows * kRowWords * 4;  // shared memory of a warp

  // The destination of a warp's sums: its first output [m0, n0], and the index of its partial sum.
  struct Place {
    int64_t m0, n0, partial;
  };

  // Rows of shared memory hold the even tokens first, then the odd tokens. In rows 0 and 1 of every four, the first
  // half of a row holds the even features; in rows 2 and 3 the second half does. So the four rows x eight words that
  // a warp writes at once lie in 32 different banks, and the words that eight lanes read at once lie in different
  // banks too.
  LAMINA_DEVICE static uint32_t* word_at(std::byte* rows, int row, int pair, int odd) {
    return reinterpret_cast<uint32_t*>(rows) + row * kRowWords + (odd ^ row / 2 % 2) * 8 + pair;
  }

  // A lane has four sums of every 8 tokens. wgmma keeps them in one array, mma in an array for every 8 tokens.
  template <class Acc>
  LAMINA_DEVICE static Acc sum_of(const Acc (&sums)[kTokens / 2], int i) {
    return sums[i];
  }
  template <class Acc>
  LAMINA_DEVICE static Acc sum_of(const Acc (&sums)[kTokens / kTokenGroup][4], int i) {
    return sums[i / 4][i % 4];
  }

  // Writes this lane's sums of chunk `chunk` (kRows tokens) to the rows. pair: the features 2 * pair and
  // 2 * pair + 1 are this lane's.
  template <class Sums>
  LAMINA_DEVICE static void stage(std::byte* rows, int chunk, int pair, const Sums& sums) {
    const int g = dev::lane() % 4;
    // The addresses of the even and of the odd feature; the bank pattern repeats every four rows.
    uint32_t* const first[] = {word_at(rows, g, pair, 0), word_at(rows, g, pair, 1)};
#pragma unroll
    for (int c = 0; c < kTokens / kRows; ++c) {
      if (c != chunk) continue;  // registers have no index
#pragma unroll
      for (int at = 0; at < kRows / kTokenGroup; ++at)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int beyond = at * 4 + e * (kRows / 2);  // rows past row g
          const int i = (c * (kRows / kTokenGroup) + at) * 4 + e;
#pragma unroll
          for (int odd = 0; odd < 2; ++odd)
            dev::store_shared(first[odd] + beyond * kRowWords,
                              std::bit_cast<uint32_t>(sum_of(sums, i + 2 * odd)));
        }
    }
  }

  // Stores the sums to the partial sum (kToPartial), or passes them through the epilogue to the result.
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
      dev::warp_sync();  // all lanes have read the chunk before
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
