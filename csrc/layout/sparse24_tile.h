// sparse24_tile v1: the packed layout of a 2:4 weight [n, k] for CUDA. Each group of four input features of an output
// feature keeps two values, and their places in the group are the metadata (layout of files: sparse24.h).
//
//   data[n / 16][k / 64][tile]; the padding has the value 0 and the metadata 0xE
//   tile = [values][32 lanes][4 bytes of metadata], 16 output x 64 input features
//
// A tile is what one warp holds in registers as operand a of mma.sp or of wgmma.sp, with output features as rows: one
// product of 64 k on 8-bit values, two products of 32 k on 16-bit values. Rows lane / 4 and lane / 4 + 8 are neighbouring
// features (int4::row_of), so a lane's sums belong to neighbouring features too. Every arch reads this order.
//
//   int8       [lane][register][4 values]
//   f16, bf16  [product][lane][register][2 values]
//   int4       [lane][product][8 codes], 0..15; codes i and i + 4 of a product are the two values of register i of a
//              16-bit operand: (word >> 4 i) & 0x000f000f
//
// The metadata of 8-bit values is the word of each lane. For 16-bit values and int4 codes, product 0 takes the words of
// lanes 0 and 1 of every four (selector 0), and product 1 those of lanes 2 and 3 (selector 1): a register for 64 k.
//
// int4 codes as 8-bit integers: bytes 0, 2, 1, 3 of the two words, low halves for row lane / 4 and high halves for the
// other row, are the four registers, if the other operand has its k in the order of s8_k; s8_metadata() converts the
// metadata.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/int_math.h"
#include "layout/int4.h"
#include "layout/sparse24.h"
#include "layout/sparse_fragment.h"

namespace lamina::sparse24_tile {

inline constexpr int kVersion = 1;
inline constexpr char kName[] = "sparse24_tile";
inline constexpr int kTileN = 16, kTileK = 64, kGroupK = 4;
inline constexpr int kGroups = kTileK / kGroupK;
inline constexpr int kLanes = 32, kMetadataBytes = kLanes * 4;
// A block of so many output features is 2:4 or dense.
inline constexpr int kBlockN = 64;
static_assert(kTileN == int4::kTileN && kTileK == int4::kTileK);

// `bits`: of a value, 4, 8 or 16.
constexpr int value_bytes(int bits) { return kTileN * kTileK / 2 * bits / 8; }
constexpr int tile_bytes(int bits) { return value_bytes(bits) + kMetadataBytes; }

constexpr int64_t tiles_n(int64_t n) { return ceil_div(n, kTileN); }
constexpr int64_t tiles_k(int64_t k) { return ceil_div(k, kTileK); }

// Bytes of a packed [n, k] weight, or nothing if the number does not fit int64.
constexpr std::optional<int64_t> packed_bytes(int64_t n, int64_t k, int bits) {
  return checked_product(tiles_n(n), tiles_k(k), tile_bytes(bits));
}

using sparse24::Place;

// Kept value `kept` (0 or 1) of group `group` (0..15) of column n of a tile.
constexpr Place index_place(int n, int group, int kept, int bits) {
  const int row = int4::row_of(n);
  const fragment::MetadataPlace at = bits == 8
                                         ? fragment::metadata_8_place(row, group * kGroupK)
                                         : fragment::metadata_16_place(row, group % 8 * kGroupK);
  const int lane = at.lane + (bits == 8 ? 0 : group / 8 * 2);
  return {value_bytes(bits) + lane * 4 + at.nibble / 2, at.nibble % 2 * 4 + kept * 2};
}

constexpr Place value_place(int n, int group, int kept, int bits) {
  const int row = int4::row_of(n);
  const int per = bits == 8 ? 4 : 2;  // values of a register
  const int product = bits == 8 ? 0 : group / 8;
  const int p = group * 2 + kept - product * 16;  // the column of operand a
  const int lane = row % 8 * 4 + p % (4 * per) / per;
  const int i = row / 8 + p / (4 * per) * 2, e = p % per;
  if (bits == 4) return {lane * 8 + product * 4 + (i + 4 * e) / 2, i % 2 * 4};
  return {product * kLanes * 16 + lane * 16 + i * 4 + e * (bits / 8), 0};
}

// int4 codes as bytes: the k, 0 to 31, at each of 32 positions of the other operand.
constexpr int s8_k(int position) { return position % 8 / 4 * 16 + position / 8 * 4 + position % 4; }

// int4 codes as bytes: the metadata of a lane is made of the bytes [x, y, x, y] of two halves, each with the codes of 16 k
// of the lane's row. The product takes their codes in turns.
constexpr uint32_t interleave_codes(uint32_t xyxy) {
  return (xyxy & 0xf00ff00f) | (xyxy << 4 & 0x0f000f00) | (xyxy >> 4 & 0x00f000f0);
}

namespace proof {

constexpr bool is_bijective(int bits) {
  std::array<uint8_t, tile_bytes(16)> seen{};
  const auto take = [&](Place at, int size) {
    if (at.byte < 0 || at.byte + (size + 7) / 8 > tile_bytes(bits)) return false;
    for (int byte = at.byte; size > 0; ++byte, size -= 8) {
      const int mask = size >= 8 ? 255 : ((1 << size) - 1) << at.shift;
      auto& of = seen[static_cast<size_t>(byte)];
      if ((of & mask) != 0) return false;
      of = static_cast<uint8_t>(of | mask);
    }
    return true;
  };
  for (int n = 0; n < kTileN; ++n)
    for (int group = 0; group < kGroups; ++group)
      for (int kept = 0; kept < 2; ++kept)
        if (!take(index_place(n, group, kept, bits), 2) ||
            !take(value_place(n, group, kept, bits), bits))
          return false;
  for (int byte = 0; byte < tile_bytes(bits); ++byte)
    if (seen[static_cast<size_t>(byte)] != 255) return false;
  return true;
}
static_assert(is_bijective(4) && is_bijective(8) && is_bijective(16),
              "indices and values fill a tile, each in a place of its own");
static_assert(tile_bytes(8) == 640 && tile_bytes(4) == 384 && tile_bytes(16) == 1152,
              "5, 3 and 9 bits a weight");

// Every register of every lane, by the fragment maps.
template <int kPer>
constexpr bool is_operand(int bits) {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int product = 0; product < kTileK / (16 * kPer); ++product) {
      for (int i = 0; i < 4; ++i)
        for (int e = 0; e < kPer; ++e) {
          const fragment::At at = fragment::mma_a<kPer>(lane, i, e);
          const int group = product * 8 + at.column / 2;
          const Place want = bits == 4
                                 ? Place{lane * 8 + product * 4 + (i + 4 * e) / 2, i % 2 * 4}
                                 : Place{(product * kLanes + lane) * 16 + i * 4 + e * 4 / kPer, 0};
          if (value_place(int4::feature_of(at.row), group, at.column % 2, bits) != want)
            return false;
        }
      if (kPer == 2 && lane % 4 / 2 != product) continue;  // the selector is the product
      for (int nibble = 0; nibble < 8; ++nibble) {
        const fragment::At at =
            kPer == 2 ? fragment::metadata_16(lane, nibble) : fragment::metadata_8(lane, nibble);
        const Place want{value_bytes(bits) + lane * 4 + nibble / 2, nibble % 2 * 4};
        const int group = product * 8 + at.column / kGroupK;
        if (index_place(int4::feature_of(at.row), group, 0, bits) != want) return false;
      }
    }
  return true;
}
static_assert(is_operand<4>(8), "a tile of int8 is operand a of m16n8k64, with its metadata");
static_assert(is_operand<2>(16) && is_operand<2>(4),
              "a tile of 16-bit values or of codes is operand a of two m16n8k32");

// int4 codes as bytes: value 4 j + kept of a lane's 8 positions is in the byte that the header names, and nibble 2 q + j of
// its metadata is nibble q of half j.
constexpr bool is_operand_as_bytes() {
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 4; ++i)
      for (int e = 0; e < 4; ++e) {
        const fragment::At at = fragment::mma_a<4>(lane, i, e);
        const int k = at.column / 16 * 32 + s8_k(at.column % 16 / 2 * kGroupK);
        const Place want{lane * 8 + i / 2 * 4 + (e % 2 * 2 + e / 2), i % 2 * 4};
        if (value_place(int4::feature_of(at.row), k / kGroupK, e % 2, 4) != want) return false;
      }
  return true;
}
static_assert(is_operand_as_bytes(),
              "with its k permuted, a tile of codes is operand a of m16n8k64");
static_assert(interleave_codes(0x76325410) == 0x73625140);

}  // namespace proof
}  // namespace lamina::sparse24_tile
