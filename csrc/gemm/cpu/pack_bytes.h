// Packs activations for the ISAs that multiply bytes in groups of k. Each ISA compiles its own copy:
// gemm/cpu/int8_nest.h says why.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout/int8_tile.h"

namespace lamina::gemm {
namespace {

// Packs byte activations as [group of k][row][sizeof(Group)] and flips the bits of `mask` in every group.
template <class Group>
inline void pack_groups(const int8_t* a, int64_t a_stride, int rows, int64_t k, Group mask,
                        void* packed) {
  constexpr int64_t kGroupK = sizeof(Group);
  Group* const groups = static_cast<Group*>(packed);
  const int64_t padded = int8_tile::tiles_k(k) * (int8_tile::kTileK / kGroupK);
  for (int r = 0; r < rows; ++r) {
    const int8_t* const row = a + r * a_stride;
    const int64_t full = k / kGroupK;
    for (int64_t g = 0; g < full; ++g) {
      Group group;
      std::memcpy(&group, row + g * kGroupK, sizeof group);
      groups[g * rows + r] = group ^ mask;
    }
    for (int64_t g = full; g < padded; ++g) {
      Group group = 0;
      if (g == full) std::memcpy(&group, row + g * kGroupK, static_cast<size_t>(k % kGroupK));
      groups[g * rows + r] = group ^ mask;
    }
  }
}

// The same for groups of four.
inline void pack_bytes(const int8_t* a, int64_t a_stride, int rows, int64_t k, uint32_t mask,
                       void* packed) {
  pack_groups(a, a_stride, rows, k, mask, packed);
}

}  // namespace
}  // namespace lamina::gemm
