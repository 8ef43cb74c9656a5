// Scales or zero points of weights with groups along k: one value for each pair of a group and an output feature.
#pragma once

#include <cstdint>

namespace lamina {

// A matrix [groups, n] with any strides, or no matrix.
struct GroupTensor {
  enum class Kind { kF32, kF16, kBF16, kU8 };
  const void* data = nullptr;
  Kind kind = Kind::kF32;
  int64_t group_stride = 0, stride = 0;  // elements between groups, between columns

  constexpr bool is_given() const { return data != nullptr; }
  constexpr int element_bytes() const { return kind == Kind::kU8 ? 1 : kind == Kind::kF32 ? 4 : 2; }
};

}  // namespace lamina
