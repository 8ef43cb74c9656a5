// sparse24_rows v1: the packed layout of a 2:4 weight [n, k] for CPUs. A group of
// four input features keeps two values of an output feature, each with its place in the group (sparse24.h).
//
//   data[n / 16][k / 64][2 spans], a span is 16 output x 32 input features; the padding has index 0 and value 0
//   span = [16 columns][4 bytes of indices][values]
//
// A span has 8 groups. Groups 2 s and 2 s + 1 are step s: 8 input features, of which a column keeps four values. Value
// j = 0..3 of step s is value j % 2 of group 2 s + j / 2. Its index, 0..3, is at bit 2 s of byte j of the column. A
// 32-bit lane is a column, so (lane >> 2 s) & 0x03030303 is the four indices of a step as bytes, one shift and one and.
// The activations of the step lie in 8 bytes, in which value j belongs to byte 4 (j / 2) + index.
//
//   int8      [step][column][j]                a 32-bit lane is the four values of a column, as vpdpbusd takes them
//   int4      [step / 2][column][j]            codes 0..15; the low half of a byte is the even step, the high half the
//                                              odd step
//   f16, bf16, f32   [step][j][column]
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/int_math.h"
#include "layout/sparse24.h"

namespace lamina::sparse24_rows {

inline constexpr int kVersion = 1;
inline constexpr char kName[] = "sparse24_rows";
inline constexpr int kTileN = 16, kTileK = 64, kSpanK = 32, kStepK = 8, kGroupK = 4;
inline constexpr int kSpans = kTileK / kSpanK, kSteps = kSpanK / kStepK;
inline constexpr int kStepValues = kStepK / 2;  // of a column
inline constexpr int kIndexBytes = kTileN * 4;  // of a span
// A block of so many output features is 2:4 or dense.
inline constexpr int kBlockN = 64;

// `bits`: of a value, 4, 8, 16 or 32.
constexpr int span_bytes(int bits) { return kIndexBytes + kTileN * kSpanK / 2 * bits / 8; }
constexpr int tile_bytes(int bits) { return kSpans * span_bytes(bits); }

constexpr int64_t tiles_n(int64_t n) { return ceil_div(n, kTileN); }
constexpr int64_t tiles_k(int64_t k) { return ceil_div(k, kTileK); }

// Bytes of a packed [n, k] weight, or nothing if the number does not fit int64.
constexpr std::optional<int64_t> packed_bytes(int64_t n, int64_t k, int bits) {
  return checked_product(tiles_n(n), tiles_k(k), tile_bytes(bits));
}

using sparse24::Place;

// Kept value `kept` (0 or 1) of group `group` (0..15) of column n of a tile.
constexpr Place index_place(int n, int group, int kept, int bits) {
  const int step = group % 8 / 2, j = group % 2 * 2 + kept;
  return {group / 8 * span_bytes(bits) + n * 4 + j, 2 * step};
}

constexpr Place value_place(int n, int group, int kept, int bits) {
  const int step = group % 8 / 2, j = group % 2 * 2 + kept;
  const int values = group / 8 * span_bytes(bits) + kIndexBytes;
  if (bits == 4) return {values + (step / 2 * kTileN + n) * kStepValues + j, step % 2 * 4};
  if (bits == 8) return {values + (step * kTileN + n) * kStepValues + j, 0};
  return {values + ((step * kStepValues + j) * kTileN + n) * (bits / 8), 0};
}

constexpr bool is_bijective(int bits) {
  std::array<uint8_t, tile_bytes(32)> seen{};
  const auto take = [&](Place at, int size) {
    if (at.byte < 0 || at.byte + (size + 7) / 8 > tile_bytes(bits)) return false;
    for (int byte = at.byte; size > 0; ++byte, size -= 8) {
      const int mask = size >= 8 ? 255 : ((1 << size) - 1) << at.shift;
      if ((seen[static_cast<size_t>(byte)] & mask) != 0) return false;
      seen[static_cast<size_t>(byte)] =
          static_cast<uint8_t>(seen[static_cast<size_t>(byte)] | mask);
    }
    return true;
  };
  for (int n = 0; n < kTileN; ++n)
    for (int group = 0; group < kTileK / kGroupK; ++group)
      for (int kept = 0; kept < 2; ++kept)
        if (!take(index_place(n, group, kept, bits), 2) ||
            !take(value_place(n, group, kept, bits), bits))
          return false;
  for (int byte = 0; byte < tile_bytes(bits); ++byte)
    if (seen[static_cast<size_t>(byte)] != 255) return false;
  return true;
}
static_assert(is_bijective(4) && is_bijective(8) && is_bijective(16) && is_bijective(32),
              "indices and values fill a tile, each in a place of its own");
static_assert(tile_bytes(8) == 640 && tile_bytes(4) == 384, "5 and 3 bits a weight");

}  // namespace lamina::sparse24_rows
