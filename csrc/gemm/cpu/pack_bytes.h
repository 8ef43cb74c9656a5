// Packs activations for the ISAs that multiply bytes four at a time. Each ISA compiles its own copy:
// ops/gemm_int8/cpu/body.h says why.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout/int8_tile.h"

namespace lamina::gemm {
namespace {

// Packs byte activations as [group of 4 k][row][4] and flips the bits of `mask` in every group of four.
inline void pack_bytes(const int8_t* a, int64_t a_stride, int rows, int64_t k, uint32_t mask,
                       void* packed) {
  uint32_t* const groups = static_cast<uint32_t*>(packed);
  const int64_t padded = int8_tile::tiles_k(k) * int8_tile::kGroups;
  for (int r = 0; r < rows; ++r) {
    const int8_t* const row = a + r * a_stride;
    const int64_t full = k / int8_tile::kGroupK;
    for (int64_t g = 0; g < full; ++g) {
      uint32_t group;
      std::memcpy(&group, row + g * int8_tile::kGroupK, sizeof group);
      groups[g * rows + r] = group ^ mask;
    }
    for (int64_t g = full; g < padded; ++g) {
      uint32_t group = 0;
      if (g == full)
        std::memcpy(&group, row + g * int8_tile::kGroupK,
                    static_cast<size_t>(k % int8_tile::kGroupK));
      groups[g * rows + r] = group ^ mask;
    }
  }
}

}  // namespace
}  // namespace lamina::gemm
