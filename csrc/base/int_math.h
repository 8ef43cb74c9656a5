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

// Divides integers from 0 to 2^31 - 1 by a divisor from 1 to 2^31 - 1, without a division.
class Divisor {
 public:
  constexpr Divisor() = default;
  // With 2^shift the first power of two that is not below d, factor = ceil(2^(31 + shift) / d) has 32 bits, and
  // exceeds the quotient by less than 1: n times that, over 2^(31 + shift), is below 1 / d.
  constexpr explicit Divisor(int32_t d) {
    while ((int64_t{1} << shift_) < d) ++shift_;
    factor_ = static_cast<uint32_t>(ceil_div(int64_t{1} << (31 + shift_), d));
  }
  constexpr int32_t operator()(int32_t n) const {
    return static_cast<int32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * factor_ >>
                                (31 + shift_));
  }

 private:
  uint32_t factor_ = uint32_t{1} << 31;
  int32_t shift_ = 0;
};

static_assert(Divisor(1)(INT32_MAX) == INT32_MAX && Divisor(INT32_MAX)(INT32_MAX - 1) == 0);
static_assert(Divisor(7)(INT32_MAX) == INT32_MAX / 7 && Divisor(3)(2) == 0 && Divisor(3)(3) == 1);
static_assert(Divisor(641)(INT32_MAX) == INT32_MAX / 641 && Divisor(16)(31) == 1);

}  // namespace lamina
