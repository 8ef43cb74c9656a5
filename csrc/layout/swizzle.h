// Where 16-byte chunks of a tile lie in shared memory, so that what a warp reads at once lies in
// different banks. 32 banks of 4 bytes: eight lanes that read 16 bytes each are served together, and must
// hit all eight bank groups.
#pragma once

#include "layout/int8_tile.h"

namespace lamina::swizzle {

inline constexpr int kChunkBytes = 16;
inline constexpr int kBankGroups = 8;

// Rows of activations, 128 bytes or a multiple: ldmatrix reads a chunk of eight rows.
constexpr int row_chunk(int row, int chunk) { return chunk ^ (row % kBankGroups); }

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

static_assert(rows_are_free_of_conflicts());
static_assert(tiles_are_free_of_conflicts());

}  // namespace proof
}  // namespace lamina::swizzle
