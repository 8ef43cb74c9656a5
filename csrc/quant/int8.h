// The one definition of the quantiser's maths, for every backend: f32 steps in a fixed order.
//
// The extremes of a row are found with integer comparisons, so their result does not depend on the order. With the
// magnitude bits of negative numbers flipped, the bit patterns of floats order like the floats, and NaNs lie outside
// the infinities.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cstdint>

#include "base/numeric.h"

namespace lamina {

// Conversion of a float to its bit pattern, sign-extended to 32 bits, and back.
constexpr int32_t to_bits(float value) { return std::bit_cast<int32_t>(value); }
template <class Half>
constexpr int32_t to_bits(Half value) {
  return static_cast<int16_t>(value.bits);
}
template <class In>
constexpr In from_bits(int32_t bits) {
  if constexpr (sizeof(In) == 4) {
    return std::bit_cast<In>(bits);
  } else {
    return In{static_cast<uint16_t>(bits)};
  }
}

// The integer that orders like the float, from the bit pattern. The function is its own inverse.
constexpr int32_t order_key(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// The smallest and the largest of a row's values and 0. A NaN in the row becomes `low` or `high`.
struct Range {
  float low, high;

  constexpr bool has_nan() const { return low != low || high != high; }
  constexpr bool has_nan_or_inf() const { return !(low >= -FLT_MAX && high <= FLT_MAX); }
};

// 1.5 * 2^23: for |v| < 2^22 the sum v + kRound holds rint(v) in its low mantissa bits.
inline constexpr float kRound = 12582912.0f;

constexpr int32_t round_to_int(float v) {
  return std::bit_cast<int32_t>(v + kRound) - std::bit_cast<int32_t>(kRound);
}

template <class T>
constexpr T clamp(T value, T low, T high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

struct Grid {
  float scale;
  int32_t zero_point;
};

constexpr Grid dynamic_grid(Range range, bool symmetric) {
  if (symmetric) return {std::max(std::max(range.high, -range.low) / 127.0f, FLT_MIN), 0};
  const float scale = std::max(range.high / 255.0f - range.low / 255.0f, FLT_MIN);
  return {scale, round_to_int(clamp(-128.0f - range.low * (1.0f / scale), -128.0f, 127.0f))};
}

// x -> q on a grid. The value is rounded first and then clamped as an integer: the bits of x / scale + kRound order
// like the numbers, even numbers too large for the rounding trick. The q of a NaN is meaningless.
class Quantizer {
 public:
  constexpr Quantizer(Grid grid, bool symmetric)
      : inverse_(1.0f / grid.scale),
        low_(kZero + (symmetric ? -127 : -128) - grid.zero_point),
        high_(kZero + 127 - grid.zero_point),
        offset_(grid.zero_point - kZero) {}

  constexpr int8_t operator()(float x) const {
    const int32_t rounded = std::bit_cast<int32_t>(x * inverse_ + kRound);
    return static_cast<int8_t>(clamp(rounded, low_, high_) + offset_);
  }

 private:
  static constexpr int32_t kZero = std::bit_cast<int32_t>(kRound);

  float inverse_;
  int32_t low_, high_, offset_;
};

}  // namespace lamina
