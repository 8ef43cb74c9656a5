// int8_tile v1: the packed layout of an int8 weight [n, k], for all kernels.
//
//   data[n / 16][k / 64][(k % 64) / 4][n % 16][k % 4] = w[n][k],   padding is zero
//
// One tile is 16 columns (output features) x 64 input features = 1 KiB of contiguous memory. One 32-bit lane of
// vpdpbusd and of tdpbssd consumes a group of four input features. A row of 64 bytes is therefore one zmm operand,
// two ymm operands, or one row of an AMX B tile, and the whole KiB is an AMX B tile. The registers of mma.sync and
// wgmma are whole groups too. Tiles of equal n follow each other along k, so a kernel reads them in order as one
// stream.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/int_math.h"

namespace lamina::int8_tile {

inline constexpr int kVersion = 1;
inline constexpr char kName[] = "int8_tile";
inline constexpr int kTileN = 16;
inline constexpr int kTileK = 64;
inline constexpr int kGroupK = 4;
inline constexpr int kGroups = kTileK / kGroupK;
inline constexpr int kTileBytes = kTileN * kTileK;

constexpr int64_t tiles_n(int64_t n) { return ceil_div(n, kTileN); }
constexpr int64_t tiles_k(int64_t k) { return ceil_div(k, kTileK); }

// Bytes of a packed [n, k] weight, or nothing if the number does not fit int64.
constexpr std::optional<int64_t> packed_bytes(int64_t n, int64_t k) {
  return checked_product(tiles_n(n), tiles_k(k), kTileBytes);
}

// The byte of w[n][k] inside its tile, and inside the packed weight.
constexpr int offset_in_tile(int n, int k) {
  return (k / kGroupK * kTileN + n) * kGroupK + k % kGroupK;
}

constexpr int64_t offset(int64_t n, int64_t k, int64_t tiles_k) {
  return ((n / kTileN) * tiles_k + k / kTileK) * kTileBytes +
         offset_in_tile(static_cast<int>(n % kTileN), static_cast<int>(k % kTileK));
}

constexpr bool is_bijective() {
  std::array<bool, kTileBytes> seen{};
  for (int n = 0; n < kTileN; ++n)
    for (int k = 0; k < kTileK; ++k) {
      const int at = offset_in_tile(n, k);
      if (at < 0 || at >= kTileBytes || seen[static_cast<size_t>(at)]) return false;
      seen[static_cast<size_t>(at)] = true;
    }
  return true;
}
static_assert(is_bijective(), "every weight of a tile has a byte of its own");
static_assert(offset(17, 70, 3) == (1 * 3 + 1) * 1024 + (1 * 16 + 1) * 4 + 2);

}  // namespace lamina::int8_tile
