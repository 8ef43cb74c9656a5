// int4 v1: the packed layouts of an int4 weight [n, k], codes 0..15, for all kernels.
//
//   data[n / 16][k / 64][512 bytes], two codes a byte; the padding is 0
//
// A tile is 16 output x 64 input features. Tiles of equal n follow each other along k, so a kernel reads them in
// order as one stream. A packed weight can be cut between tiles along n and along k without unpacking.
//
// int4_tile, for CUDA: [lane][step of 16 k][8 codes], 16 bytes a lane, the order of operand a of mma.sync m16n8k16
// and of one warp of wgmma m64nNk16, with output features as rows. Rows lane / 4 and lane / 4 + 8 are neighbouring
// features (row_of), so a lane's sums belong to neighbouring features too. Codes i and i + 4 of a step are the two
// elements of register i: (word >> 4 i) & 0x000f000f is register i as two 16-bit integers. As 8-bit integers, for
// m16n8k32 and m64nNk32, word & 0x0f0f0f0f is the register of row lane / 4 and (word >> 4) & 0x0f0f0f0f the register
// of row lane / 4 + 8, if the other operand has its k in the order of s8_k.
//
// int4_rows, for CPUs: [8 rows][16 columns][4 bytes]. In row r the low halves of the bytes are group 2 r of four input
// features in the order of int8_tile, the high halves are group 2 r + 1.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/int_math.h"
#include "layout/fragment.h"

namespace lamina::int4 {

inline constexpr int kVersion = 1;
inline constexpr char kTileName[] = "int4_tile", kRowsName[] = "int4_rows";
inline constexpr int kTileN = 16, kTileK = 64;
inline constexpr int kTileBytes = kTileN * kTileK / 2;

constexpr int64_t tiles_n(int64_t n) { return ceil_div(n, kTileN); }
constexpr int64_t tiles_k(int64_t k) { return ceil_div(k, kTileK); }

// Bytes of a packed [n, k] weight, or nothing if the number does not fit int64.
constexpr std::optional<int64_t> packed_bytes(int64_t n, int64_t k) {
  return checked_product(tiles_n(n), tiles_k(k), kTileBytes);
}

// The place of a code in its tile.
struct Place {
  int byte, shift;

  constexpr bool operator==(const Place&) const = default;
};
using Layout = Place (*)(int n, int k);

// The code at a place of a tile.
struct At {
  int n, k;

  constexpr bool operator==(const At&) const = default;
};
using Inverse = At (*)(int byte, int shift);

// The row of operand a that holds output feature n of a tile, and back.
constexpr int row_of(int n) { return n / 2 + n % 2 * 8; }
constexpr int feature_of(int row) { return row % 8 * 2 + row / 8; }

constexpr Place tile_place(int n, int k) {
  const int lane = row_of(n) % 8 * 4 + k % 8 / 2, step = k / 16;
  const int code = row_of(n) / 8 + k % 16 / 8 * 2 + k % 2 * 4;
  return {lane * 16 + step * 4 + code / 2, code % 2 * 4};
}

constexpr Place rows_place(int n, int k) { return {k / 8 * 64 + n * 4 + k % 4, k / 4 % 2 * 4}; }

constexpr At tile_at(int byte, int shift) {
  const int lane = byte / 16, code = byte % 4 * 2 + shift / 4;
  return {feature_of(lane / 4 + code % 2 * 8),
          byte / 4 % 4 * 16 + lane % 4 * 2 + code / 2 % 2 * 8 + code / 4};
}

constexpr At rows_at(int byte, int shift) {
  return {byte % 64 / 4, byte / 64 * 8 + shift + byte % 4};
}

// Where weights are 8-bit integers: the k, 0 to 15, at each of 16 positions of the other operand.
constexpr int s8_k(int position) { return position / 4 * 2 + position % 2 * 8 + position % 4 / 2; }

constexpr bool is_bijective(Layout place) {
  std::array<bool, 2 * kTileBytes> seen{};
  for (int n = 0; n < kTileN; ++n)
    for (int k = 0; k < kTileK; ++k) {
      const Place at = place(n, k);
      const int code = at.byte * 2 + at.shift / 4;
      if (code < 0 || code >= 2 * kTileBytes || at.shift % 4 != 0) return false;
      if (seen[static_cast<size_t>(code)]) return false;
      seen[static_cast<size_t>(code)] = true;
    }
  return true;
}
static_assert(is_bijective(tile_place), "every weight of a tile has half a byte of its own");
static_assert(is_bijective(rows_place));

constexpr bool is_inverse(Inverse at, Layout place) {
  for (int n = 0; n < kTileN; ++n)
    for (int k = 0; k < kTileK; ++k)
      if (at(place(n, k).byte, place(n, k).shift) != At{n, k}) return false;
  return true;
}
static_assert(is_inverse(tile_at, tile_place) && is_inverse(rows_at, rows_place));

constexpr bool is_mma_operand() {
  for (int lane = 0; lane < 32; ++lane)
    for (int step = 0; step < kTileK / 16; ++step)
      for (int i = 0; i < 4; ++i)
        for (int e = 0; e < 2; ++e) {
          const fragment::At at = fragment::mma_a<2>(lane, i, e);
          const int code = i + 4 * e;
          const Place want{lane * 16 + step * 4 + code / 2, code % 2 * 4};
          if (tile_place(feature_of(at.row), step * 16 + at.column) != want) return false;
        }
  return true;
}
static_assert(is_mma_operand(), "int4_tile is the a operand of m16n8k16");

constexpr bool is_mma_operand_as_bytes() {
  for (int lane = 0; lane < 32; ++lane)
    for (int product = 0; product < kTileK / 32; ++product)
      for (int i = 0; i < 4; ++i)
        for (int e = 0; e < 4; ++e) {
          const fragment::At at = fragment::mma_a<4>(lane, i, e);
          const int k = product * 32 + at.column / 16 * 16 + s8_k(at.column % 16);
          const Place want{lane * 16 + (product * 2 + i / 2) * 4 + e, i % 2 * 4};
          if (tile_place(feature_of(at.row), k) != want) return false;
        }
  return true;
}
static_assert(is_mma_operand_as_bytes(),
              "with its k permuted, int4_tile is the a operand of m16n8k32");

}  // namespace lamina::int4
