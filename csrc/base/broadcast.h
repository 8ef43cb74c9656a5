// A vector operand: element i is data[i * stride]. With stride 0 all elements are one value.
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
