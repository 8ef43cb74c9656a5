// Where 16-byte chunks of a tile lie in shared memory, so that what a warp reads at once lies in
// different banks. 32 banks of 4 bytes: eight lanes that read 16 bytes each are served together, and must
// hit all eight bank groups.
#pragma once

#include <cstdint>

#include "layout/int8_tile.h"

namespace lamina {

// The swizzles of TMA and wgmma, by the bytes of a row: 16-byte chunks change places within it.
enum class Swizzle { kNone, k32, k64, k128 };

constexpr int swizzle_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 0 : 16 << static_cast<int>(swizzle);
}

// After so many bytes the pattern repeats: where a tile begins must be a multiple.
constexpr int swizzle_alignment(Swizzle swizzle) { return 8 * swizzle_bytes(swizzle); }

// Where hardware puts the byte that would be at `address` of shared memory, and the other way round:
// bits 4 to 6 (4 to 5, 4) change by bits 7 to 9 (7 to 8, 7). PTX ISA, "Swizzling modes".
constexpr uint32_t swizzled(Swizzle swizzle, uint32_t address) {
  const uint32_t chunks = static_cast<uint32_t>(swizzle_bytes(swizzle)) / 16;
  return chunks == 0 ? address : address ^ (address >> 7 & (chunks - 1)) << 4;
}

}  // namespace lamina

namespace lamina::swizzle {

inline constexpr int kChunkBytes = 16;
inline constexpr int kBankGroups = 8;

// Rows of activations, 128 bytes or a multiple: ldmatrix reads a chunk of eight rows.
constexpr int row_chunk(int row, int chunk) { return chunk ^ (row % kBankGroups); }

// The same of rows of 64 bytes, two of which fill all banks.
constexpr int half_row_chunk(int row, int chunk) { return chunk ^ (row / 2 % 4); }

// An int8_tile: 16 rows (groups of 4 k) of 64 bytes (16 columns x 4 k). A lane of an mma takes chunk q % 4
// of row g, with g = lane % 4 and q = lane / 4.
constexpr int tile_chunk(int row, int chunk) { return chunk ^ (row / 2 % 2 * 2); }

namespace proof {

constexpr bool hits_every_bank_group(auto bank_group_of) {
  unsigned seen = 0;
  for (int lane = 0; lane < kBankGroups; ++lane) seen |= 1u << (bank_group_of(lane) % kBankGroups);
  return seen == 0xffu;
}

constexpr bool rows_are_free_of_conflicts() {
  for (int row_chunks : {8, 16, 32})
    for (int chunk = 0; chunk < row_chunks; ++chunk)
      for (int first = 0; first < 64; first += 8)
        if (!hits_every_bank_group([=](int lane) {
              return (first + lane) * row_chunks + row_chunk(first + lane, chunk);
            }))
          return false;
  return true;
}

constexpr bool half_rows_are_free_of_conflicts() {
  for (int first = 0; first < 64; first += 8)
    for (int chunk = 0; chunk < 4; ++chunk)
      if (!hits_every_bank_group(
              [=](int lane) { return (first + lane) * 4 + half_row_chunk(first + lane, chunk); }))
        return false;
  return true;
}

constexpr bool tiles_are_free_of_conflicts() {
  constexpr int kRowChunks = int8_tile::kTileN * int8_tile::kGroupK / kChunkBytes;
  for (int first_row = 0; first_row < int8_tile::kGroups; first_row += 4)
    for (int first_lane = 0; first_lane < 32; first_lane += 8)
      if (!hits_every_bank_group([=](int i) {
            const int lane = first_lane + i, row = first_row + lane % 4;
            return row * kRowChunks + tile_chunk(row, lane / 4 % 4);
          }))
        return false;
  return true;
}

// Swizzle::k128 is row_chunk() of 128-byte rows; eight rows of any swizzle stay among themselves.
constexpr bool hardware_swizzles_hold() {
  for (int row = 0; row < 16; ++row)
    for (int chunk = 0; chunk < kBankGroups; ++chunk)
      if (swizzled(Swizzle::k128,
                   static_cast<uint32_t>((row * kBankGroups + chunk) * kChunkBytes)) !=
          static_cast<uint32_t>((row * kBankGroups + row_chunk(row, chunk)) * kChunkBytes))
        return false;
  for (Swizzle swizzle : {Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128})
    for (uint32_t at = 0; at < 2048; ++at)
      if (swizzled(swizzle, swizzled(swizzle, at)) != at ||
          swizzled(swizzle, at + 1024) != swizzled(swizzle, at) + 1024)
        return false;
  return true;
}

static_assert(hardware_swizzles_hold());
static_assert(rows_are_free_of_conflicts());
static_assert(half_rows_are_free_of_conflicts());
static_assert(tiles_are_free_of_conflicts());

}  // namespace proof
}  // namespace lamina::swizzle
