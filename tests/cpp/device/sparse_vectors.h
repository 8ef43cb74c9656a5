// PTX ISA, "Sparse matrix storage" and "Matrix fragments for multiply-accumulate operation with sparse matrix A" of
// mma.sp, and the same sections of wgmma.mma_async.sp: a 2:4 sparse matrix, and its metadata in the registers of a warp.
#pragma once

#include <array>

#include "buffer.h"

namespace lamina::test {

// The text's pairs of indices with its codes, low bits first: 0b0100 keeps elements 0 and 1, ... 0b1110 elements 2 and 3.
struct KeptPair {
  size_t first, second;
  uint32_t code;
};
inline constexpr std::array<KeptPair, 6> kKeptPairs = {{{0, 1, 0b0100},
                                                        {0, 2, 0b1000},
                                                        {0, 3, 0b1100},
                                                        {1, 2, 0b1001},
                                                        {1, 3, 0b1101},
                                                        {2, 3, 0b1110}}};

// Which pair of row `row` and of the elements from 4 * four on is kept: neighbours differ in all directions.
inline const KeptPair& kept(size_t row, size_t four) {
  return kKeptPairs[(row * 5 + four * 7 + row * four + row / 8) % 6];
}
inline size_t kept_column(size_t row, size_t p) {  // of element p of the stored row
  const KeptPair& pair = kept(row, p / 2);
  return p / 2 * 4 + (p % 2 == 0 ? pair.first : pair.second);
}

// "Tk: [m..n] present in cell [x][y..z]": bits n to m of thread k's metadata hold the indices of row x's elements y to z.
//   .f16, .bf16, m16n8k32, selector s: T(4g + 2s + c) [15..0] [g][16c .. 16c + 15], [31..16] [g + 8][same], c = 0, 1
//   .s8, m16n8k64, selector 0: T(4g + c) [31..0] [g][32 (c / 2) ..], c = 0, 2, and [g + 8][same], c = 1, 3
// The text leaves the metadata of the other threads unused: it is garbage here.
inline std::vector<uint32_t> warp_metadata(bool is_bytes, size_t selector, size_t first_row) {
  std::vector<uint32_t> words(32, 0xdeadf0f0u);
  for (size_t g = 0; g < 8; ++g)
    for (size_t c = 0; c < (is_bytes ? 4u : 2u); ++c) {
      uint32_t word = 0;
      for (size_t i = 0; i < 8; ++i) {
        const size_t row = is_bytes ? g + 8 * (c % 2) : g + 8 * (i / 4);
        const size_t four = is_bytes ? 8 * (c / 2) + i : 4 * c + i % 4;
        word |= kept(first_row + row, four).code << (4 * i);
      }
      words[4 * g + c + (is_bytes ? 0 : 2 * selector)] = word;
    }
  return words;
}

}  // namespace lamina::test
