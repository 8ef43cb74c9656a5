// The order of the 16-byte chunks of a tile in shared memory that keeps a warp's loads free of bank conflicts. There
// are 32 banks of 4 bytes: eight lanes that read 16 bytes each are served together, and must hit all eight groups of
// four banks.
#pragma once

#include <cstdint>

#include "layout/int8_tile.h"

namespace lamina {

// The swizzles of TMA and wgmma, named by the bytes of a row; the 16-byte chunks of a row change places within the row.
enum class Swizzle { kNone, k32, k64, k128 };

constexpr int swizzle_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::kNone ? 0 : 16 << static_cast<int>(swizzle);
}

// The pattern repeats after this many bytes, so a tile must begin at a multiple of them.
constexpr int swizzle_alignment(Swizzle swizzle) { return 8 * swizzle_bytes(swizzle); }

// The address to which hardware moves the byte of `address`, and back: k128 XORs bits 4 to 6 with bits 7 to 9, k64 bits
// 4 to 5 with bits 7 to 8, k32 bit 4 with bit 7. PTX ISA, "Swizzling modes".
constexpr uint32_t swizzled(Swizzle swizzle, uint32_t address) {
  const uint32_t chunks = static_cast<uint32_t>(swizzle_bytes(swizzle)) / 16;
  return chunks == 0 ? address : address ^ (address >> 7 & (chunks - 1)) << 4;
}

}  // namespace lamina

namespace lamina::swizzle {

inline constexpr int kChunkBytes = 16;
inline constexpr int kBankGroups = 8;

// Rows of activations of 128 bytes or a multiple: ldmatrix reads one chunk of each of eight rows.
constexpr int row_chunk(int row, int chunk) { return chunk ^ (row % kBankGroups); }

// The same for rows of 64 bytes, two of which fill all banks.
constexpr int half_row_chunk(int row, int chunk) { return chunk ^ (row / 2 % 4); }

// Rows of bytes, row_bytes = 64 or a multiple of 128, from which two kinds of loads read: eight lanes a chunk of 16
// bytes each, of four chunks of two neighbouring rows; and 32 lanes a word each, of two chunks of four rows, every
// other. The byte where a chunk of a row starts. Two rows of 64 bytes share a line of 128.
constexpr int byte_row_offset(int row_bytes, int row, int chunk) {
  const int line = row_bytes == 64 ? row / 2 * 128 : row * row_bytes;
  return line + (chunk ^ (row % 2 * 4) ^ (row / 2 % 4 * 2)) * kChunkBytes;
}

// An int8_tile: 16 rows (groups of 4 k) of 64 bytes (16 columns x 4 k). A lane of an mma reads chunk q % 4
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

constexpr bool byte_rows_are_free_of_conflicts() {
  for (int row_bytes : {64, 128, 256})
    for (int row = 0; row < 16; row += 2)
      for (int chunk = 0; chunk < row_bytes / kChunkBytes; chunk += 4) {
        if (!hits_every_bank_group([=](int lane) {
              return byte_row_offset(row_bytes, row + lane / 4, chunk + lane % 4) / kChunkBytes;
            }))
          return false;
        for (int pair = 0; pair < 4; pair += 2)
          for (int first = row / 8 * 8; first < row / 8 * 8 + 2; ++first)
            if (!hits_every_bank_group([=](int i) {
                  return byte_row_offset(row_bytes, first + i / 2 * 2, chunk + pair + i % 2) /
                         kChunkBytes;
                }))
              return false;
      }
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

// Swizzle::k128 equals row_chunk() for 128-byte rows, and no swizzle moves a byte out of its 1024 bytes.
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
static_assert(byte_rows_are_free_of_conflicts());
static_assert(tiles_are_free_of_conflicts());

}  // namespace proof
}  // namespace lamina::swizzle
