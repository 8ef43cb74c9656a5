// Calls a function with the element type of a dtype.
#pragma once

#include "base/numeric.h"

namespace lamina {
namespace {

// body(T{}).
template <class Body>
void with_type(DType dtype, const Body& body) {
  if (dtype == DType::kF32) body(float{});
  if (dtype == DType::kF16) body(F16{});
  if (dtype == DType::kBF16) body(BF16{});
}

}  // namespace
}  // namespace lamina
