// Integer maths for sizes: everything is 64-bit, and a product that could overflow is checked.
#pragma once

#include <cstdint>
#include <optional>

namespace lamina {

constexpr int64_t ceil_div(int64_t value, int64_t divisor) {
  return value / divisor + (value % divisor != 0);
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return ceil_div(value, multiple) * multiple;
}

// value * factor for non-negative operands, or nothing if it does not fit int64.
constexpr std::optional<int64_t> checked_product(int64_t value, int64_t factor) {
  if (value != 0 && factor > INT64_MAX / value) return std::nullopt;
  return value * factor;
}

template <class... Rest>
constexpr std::optional<int64_t> checked_product(int64_t value, int64_t factor, Rest... rest) {
  const std::optional<int64_t> head = checked_product(value, factor);
  if (!head) return std::nullopt;
  return checked_product(*head, rest...);
}

}  // namespace lamina
