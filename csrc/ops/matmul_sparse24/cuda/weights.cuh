// A lane's part of a tile of layout/sparse24_tile.h, in registers: the values and the metadata of operand a.
#pragma once

#include "device/sparse.h"
#include "layout/sparse24_tile.h"

namespace lamina::matmul_sparse24 {

// Past n and past k a ring stage holds zeros, which are no metadata. ORed to them, this is {2, 3} for every group.
inline constexpr uint32_t kPadding = 0xeeeeeeee;

// The padding is ORed to the metadata of a column of tiles; columns are counted from the first feature on.
LAMINA_DEVICE uint32_t padding_of(int64_t column, int64_t n) {
  return column * sparse24_tile::kTileN < n ? 0 : kPadding;
}

LAMINA_DEVICE uint32_t load_metadata(int bits, const std::byte* tile) {
  return dev::load_shared(
      reinterpret_cast<const uint32_t*>(tile + sparse24_tile::value_bytes(bits) + dev::lane() * 4));
}

// Loads operand a of product `product` of a tile of int8 or 16-bit values.
LAMINA_DEVICE void load_values(const std::byte* tile, int product, uint32_t (&a)[4]) {
  const dev::U32x4 four = dev::load_shared(
      reinterpret_cast<const dev::U32x4*>(tile + (product * dev::kWarpLanes + dev::lane()) * 16));
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = four.x[i];
}

// The 8 codes of each of the two products of a tile of int4 codes.
LAMINA_DEVICE dev::U32x2 load_codes(const std::byte* tile) {
  return dev::load_shared(reinterpret_cast<const dev::U32x2*>(tile + dev::lane() * 8));
}

}  // namespace lamina::matmul_sparse24
