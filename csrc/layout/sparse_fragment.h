// The fragment maps of mma.sp and wgmma.sp, whose operand a is 2:4 sparse: of every four elements along k it holds two, in
// order. PTX ISA, "Matrix fragments for sparse mma.m16n8k32 / .m16n8k64" and "... using wgmma.mma_async.sp".
//
// a [16 rows, k]: four registers, which are those of a dense a of k / 2 columns, fragment::mma_a.
// b [k rows, 8 columns]: four registers, i = 0 to 3 of fragment::mma_b.
// The metadata is one word of a lane. It has a nibble of two indices for every four elements along k, the index of the
// first element in the low bits. wgmma.sp: each warp's metadata is that of mma.sp on its 16 of the 64 rows.
#pragma once

#include <cstdint>

#include "layout/fragment.h"

namespace lamina::fragment {

// Each function gives the row and the first of the four columns that nibble i of a lane's word describes.

// 16-bit elements, k = 32: the lanes with lane % 4 / 2 == the selector give metadata.
constexpr At metadata_16(int lane, int i) {
  return {lane / 4 + i / 4 * 8, lane % 2 * 16 + i % 4 * 4};
}

// 8-bit elements, k = 64: all lanes give metadata, and the selector is 0.
constexpr At metadata_8(int lane, int i) {
  return {lane / 4 + lane % 2 * 8, lane % 4 / 2 * 32 + i * 4};
}

// The inverse, for one warp's 16 rows and the four elements from `column` on. 16-bit: the lane for selector 0; selector 1
// takes the metadata from lane + 2.
struct MetadataPlace {
  int lane, nibble;

  constexpr bool operator==(const MetadataPlace&) const = default;
};
constexpr MetadataPlace metadata_16_place(int row, int column) {
  return {row % 8 * 4 + column / 16, row / 8 * 4 + column % 16 / 4};
}
constexpr MetadataPlace metadata_8_place(int row, int column) {
  return {row % 8 * 4 + column / 32 * 2 + row / 8, column % 32 / 4};
}

namespace proof {

constexpr bool metadata_places_hold() {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 8; ++i) {
      const At bytes = metadata_8(lane, i), halves = metadata_16(lane, i);
      if (metadata_8_place(bytes.row, bytes.column) != MetadataPlace{lane, i}) return false;
      if (metadata_16_place(halves.row, halves.column) != MetadataPlace{lane & ~2, i}) return false;
    }
  return true;
}
static_assert(metadata_places_hold());

}  // namespace proof
}  // namespace lamina::fragment
