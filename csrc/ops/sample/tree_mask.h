// pack_tree_mask:   bit j of mask[i] = node j is node i or an ancestor of it;   depth[i] = ancestors of node i
//
// A parent comes before its children, so a row of the mask is the row of its parent and one more bit.
#pragma once

#include <cstdint>

#include "base/unroll.h"
#include "ops/sample/sample.h"

namespace lamina::sample {

LAMINA_INLINE constexpr bool is_parent(int32_t parent, int64_t node) {
  return parent >= -1 && parent < node;
}

LAMINA_INLINE constexpr int32_t bit_of(int64_t node) {
  return static_cast<int32_t>(uint32_t{1} << node % 32);
}

}  // namespace lamina::sample
