// sparse24 v1: the reference order of a 2:4 weight [n, k], k a multiple of 4. It is what files, importers and tests
// speak; kernels read packed orders that are made from it.
//
//   values[n][k / 2]            the two kept values of each group of 4 along k, in the order of k
//   metadata[n][ceil(k / 8)]    one code of 4 bits a group; even groups are in the low halves of bytes
//
// A code is i0 | i1 << 2 with i0 < i1: values 2 g and 2 g + 1 are w[4 g + i0] and w[4 g + i1]. These are the codes of
// mma.sp::ordered_metadata and wgmma.mma_async.sp (PTX ISA, sparse matrix storage); equal indices are undefined there,
// so no code is written for them. A group with fewer than two nonzeros also keeps zeros: place 2, then place 3, as
// torch does. An empty group is {2, 3}, and so is the half of a byte past the last group of an odd number.
#pragma once

#include <array>
#include <cstdint>

#include "base/int_math.h"

namespace lamina::sparse24 {

inline constexpr int kVersion = 1;
inline constexpr char kName[] = "sparse24";
inline constexpr int kGroupK = 4, kKept = 2;

constexpr int64_t groups(int64_t k) { return k / kGroupK; }
constexpr int64_t values_k(int64_t k) { return k / kGroupK * kKept; }
constexpr int64_t metadata_bytes(int64_t k) { return ceil_div(groups(k), 2); }

constexpr int code_of(int i0, int i1) { return i0 | i1 << 2; }
constexpr int first(int code) { return code & 3; }
constexpr int second(int code) { return code >> 2 & 3; }
constexpr bool is_code(int code) { return first(code) < second(code); }

// The place of an index or a value in a tile of a packed order: bits [shift, shift + size) of the bytes from `byte` on.
struct Place {
  int byte, shift;

  constexpr bool operator==(const Place&) const = default;
};

inline constexpr int kEmptyCode = code_of(2, 3);
inline constexpr int kNoCode = -1;

// The code of group g in a row of metadata.
constexpr int code_at(const uint8_t* row, int64_t g) { return row[g / 2] >> (g % 2 * 4) & 15; }

// The code of a group whose entries `kept`, one bit each, stay; kNoCode for more than two.
constexpr int code_of_kept(int kept) {
  int count = 0;
  for (int i = 0; i < kGroupK; ++i) count += kept >> i & 1;
  if (count > kKept) return kNoCode;
  for (int i = 2; count < kKept; ++i)
    if (!(kept >> i & 1)) kept |= 1 << i, ++count;
  int i0 = 0, i1 = kGroupK - 1;
  while (!(kept >> i0 & 1)) ++i0;
  while (!(kept >> i1 & 1)) --i1;
  return code_of(i0, i1);
}

// code_of_kept as a table, which packing reads.
inline constexpr auto kCodes = [] {
  std::array<int8_t, 1 << kGroupK> codes{};
  for (int kept = 0; kept < 1 << kGroupK; ++kept)
    codes[static_cast<size_t>(kept)] = static_cast<int8_t>(code_of_kept(kept));
  return codes;
}();

constexpr bool is_complete() {
  int codes = 0;
  for (int kept = 0; kept < 1 << kGroupK; ++kept) {
    const int code = code_of_kept(kept);
    if (code == kNoCode) continue;
    const int places = 1 << first(code) | 1 << second(code);
    if (!is_code(code) || (kept & ~places) != 0) return false;  // an entry would be lost
    if (kept == places) ++codes;
  }
  return codes == 6;
}
static_assert(is_complete(), "every group of at most two has a code, and each pair has its own");
static_assert(code_of_kept(0b0011) == 0x4 && code_of_kept(0b0101) == 0x8);
static_assert(code_of_kept(0b1001) == 0xC && code_of_kept(0b0110) == 0x9);
static_assert(code_of_kept(0b1010) == 0xD && code_of_kept(0b1100) == 0xE);
static_assert(code_of_kept(0b0000) == kEmptyCode && kEmptyCode == 0xE);
static_assert(code_of_kept(0b0001) == 0x8 && code_of_kept(0b0010) == 0x9);
static_assert(code_of_kept(0b0100) == 0xE && code_of_kept(0b1000) == 0xE);
static_assert(code_of_kept(0b0111) == kNoCode && code_of_kept(0b1111) == kNoCode);
static_assert(!is_code(0x0) && !is_code(0x5) && !is_code(0xA) && !is_code(0xF) && !is_code(0x1));

}  // namespace lamina::sparse24
