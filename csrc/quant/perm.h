// Act-order: the order in which the input features of a weight are packed.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace lamina {

// Packed input feature p is feature data[p] of `features`; -1 marks a packed place that holds no feature. Without data
// all features are packed in their own order.
struct Perm {
  const int32_t* data = nullptr;  // [k]
  int64_t features = 0;

  constexpr bool is_given() const { return data != nullptr; }
};

// An error of `op` that names the first of the k entries that is neither -1 nor a feature.
Status check(const char* op, const Perm& perm, int64_t k);

}  // namespace lamina
