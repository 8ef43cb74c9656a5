// The orders in which other libraries keep 2:4 weights, read by ops/compress_sparse24/foreign.cc.
//
// Metadata is in words of one row, 16 bits (4 groups) or 32 bits (8 groups), the first group in the low bits:
//   cutlass_16, cutlass_8   util/host_reorder.h of CUTLASS and torch's _semi_structured_conversions.py
//   cusparselt_16           torch's SparseSemiStructuredTile.cu, which writes it for cuSPARSELt to read: the 32 x 32 blocks
//                           of cutlass_16, 8 of them to 128 rows x 64 input features
//   marlin                  semi_structured_conversions.py of compressed-tensors 0.4 to 0.14
// In all of them a word (row, column) first moves within its block of rows, then the words off the diagonal of each
// 2 x 2 change places, then pairs of columns are stored one after another.
//
// marlin24 is the order of the kept codes: permutations_24.py and marlin_24.py of compressed-tensors.
#pragma once

#include <array>
#include <cstdint>

namespace lamina::sparse24 {

// Where a word of metadata is, in words. n: rows of the weight.
using WordPlace = int64_t (*)(int64_t row, int64_t column, int64_t n);

// row: already moved within its block.
constexpr int64_t interleaved_columns(int64_t row, int64_t column, int64_t n) {
  if (row % 2 != column % 2) {  // off the diagonal of a 2 x 2
    const int64_t step = row % 2 == 0 ? 1 : -1;
    row += step;
    column -= step;
  }
  return (column / 2 * n + row) * 2 + column % 2;
}

template <int kBlock>
constexpr int64_t cutlass_row(int64_t row) {
  return row / kBlock * kBlock + row % 8 * (kBlock / 8) + row % kBlock / 8;
}

template <int kBlock>
constexpr int64_t cutlass_place(int64_t row, int64_t column, int64_t n) {
  return interleaved_columns(cutlass_row<kBlock>(row), column, n);
}

constexpr int64_t cusparselt_place(int64_t row, int64_t column, int64_t n) {
  constexpr int64_t kBlockWords = 64;
  const int64_t block =
      (column / 4 * (n / 128) + row / 128) * 8 + column % 4 / 2 * 4 + row % 128 / 32;
  return block * kBlockWords + interleaved_columns(cutlass_row<32>(row % 32), column % 2, 32);
}

constexpr int64_t marlin_row(int64_t row) {
  return row / 64 * 64 + row % 2 * 2 + row % 8 / 4 + row % 4 / 2 * 32 + row % 64 / 8 * 4;
}
constexpr int64_t marlin_place(int64_t row, int64_t column, int64_t n) {
  return interleaved_columns(marlin_row(row), column, n);
}

template <int kRows, int kColumns>
constexpr bool is_bijective(WordPlace place) {
  std::array<bool, kRows * kColumns> seen{};
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < kColumns; ++column) {
      const auto at = static_cast<size_t>(place(row, column, kRows));
      if (at >= seen.size() || seen[at]) return false;
      seen[at] = true;
    }
  return true;
}
static_assert(is_bijective<64, 6>(cutlass_place<32>) && is_bijective<48, 4>(cutlass_place<16>));
static_assert(is_bijective<256, 8>(cusparselt_place) && is_bijective<128, 4>(marlin_place));
// The first words of a 32 x 32 block, from the comment of warp_shuffle_meta in torch's SparseSemiStructuredPack.h.
static_assert(cutlass_place<32>(0, 0, 32) == 0 && cutlass_place<32>(8, 0, 32) == 1);
static_assert(cutlass_place<32>(0, 1, 32) == 2 && cutlass_place<32>(8, 1, 32) == 3);
static_assert(cutlass_place<32>(16, 0, 32) == 4 && cutlass_place<32>(24, 1, 32) == 7);
static_assert(cutlass_place<32>(1, 0, 32) == 8 && cutlass_place<32>(25, 1, 32) == 15);

namespace marlin24 {

// A tile is 16 kept codes along k of 64 rows: element e of its 1024 is the code of kept position k and row n.
inline constexpr int kTileK = 16, kTileN = 64, kTile = kTileK * kTileN;

struct At {
  int k, n;
};

// per_word: the codes of a word of 32 bits, lowest bits first, which are interleaved for the kernel's conversion.
constexpr At at(int element, int bits) {
  const int per_word = 32 / bits, half = per_word / 2;
  const int inside = element % per_word;
  const int e = element / per_word * per_word + inside % half * 2 + inside / half;
  const int thread = e / 32, j = e % 32 / 8, block = e % 8 / 4, y = e % 4;
  return {thread % 4 * 2 + y % 2 + y / 2 * 8, thread / 8 * 16 + thread / 4 % 2 * 8 + block * 4 + j};
}

constexpr bool is_bijective(int bits) {
  std::array<bool, kTile> seen{};
  for (int e = 0; e < kTile; ++e) {
    const auto place = static_cast<size_t>(at(e, bits).k * kTileN + at(e, bits).n);
    if (place >= seen.size() || seen[place]) return false;
    seen[place] = true;
  }
  return true;
}
static_assert(is_bijective(4) && is_bijective(8));

}  // namespace marlin24
}  // namespace lamina::sparse24
