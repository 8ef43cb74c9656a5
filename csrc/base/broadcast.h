// A vector operand that may be one value for all: element i is data[i * stride], stride 0 or more.
#pragma once

#include <cstdint>

namespace lamina {

template <class T>
struct Broadcast {
  const T* data = nullptr;
  int64_t stride = 0;

  constexpr bool is_given() const { return data != nullptr; }
  constexpr T operator[](int64_t i) const { return data[i * stride]; }
};

}  // namespace lamina
