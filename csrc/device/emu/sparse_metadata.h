// The metadata of a 2:4 sparse operand a of mma.sp and wgmma.sp: which elements along k its elements stand for.
#pragma once

#include <array>
#include <string>

#include "device/emu/executor.h"
#include "layout/sparse_fragment.h"

namespace lamina::dev::emu {

inline constexpr int kSparseRows = 16;  // rows of a that a warp has
inline constexpr int kMostKept = 32;    // elements of a row of a
inline constexpr int kMetadataNibbles = 8;

// The k that each element of a row of a stands for.
using KeptColumns = std::array<std::array<uint8_t, kMostKept>, kSparseRows>;

// The selector of 16-bit elements, or of 8-bit elements, which have none.
inline constexpr int kSelectorOfBytes = -1;

// Decodes the metadata of a warp's 16 rows. Fails where PTX leaves the result undefined: where the indices of two
// elements are equal, or not in order, which only mma.sp without .ordered_metadata allows.
inline KeptColumns kept_columns(const std::array<uint32_t, kWarpLanes>& metadata, int selector,
                                const char* name, Where where) {
  KeptColumns kept{};
  const bool is_bytes = selector == kSelectorOfBytes;
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!is_bytes && lane % 4 / 2 != selector) continue;
    for (int i = 0; i < kMetadataNibbles; ++i) {
      const uint32_t nibble = metadata[static_cast<size_t>(lane)] >> (4 * i) & 0xf;
      const fragment::At at =
          is_bytes ? fragment::metadata_8(lane, i) : fragment::metadata_16(lane, i);
      const uint32_t first = nibble & 3, second = nibble >> 2;
      if (first >= second)
        fail(std::string(name) + ": lane " + std::to_string(lane) + " has metadata " +
                 std::to_string(first) + ", " + std::to_string(second) + " for row " +
                 std::to_string(at.row) + " and k " + std::to_string(at.column) + " to " +
                 std::to_string(at.column + 3) + "; the two indices must be different and in order",
             where);
      auto& row = kept[static_cast<size_t>(at.row)];
      row[static_cast<size_t>(at.column / 2)] =
          static_cast<uint8_t>(at.column + static_cast<int>(first));
      row[static_cast<size_t>(at.column / 2 + 1)] =
          static_cast<uint8_t>(at.column + static_cast<int>(second));
    }
  }
  return kept;
}

}  // namespace lamina::dev::emu
