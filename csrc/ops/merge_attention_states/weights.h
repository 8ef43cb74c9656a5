// The elementary functions of the weights, for every backend: steps of f32 and f64 in a fixed order, without a maths
// library, so that all backends get the same bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "base/unroll.h"
#include "gemm/activation.h"

namespace lamina::merge_attention_states {

inline constexpr float kEmpty = -std::numeric_limits<float>::infinity();

// The larger of two lses; a NaN if one is NaN.
LAMINA_INLINE constexpr float larger(float a, float b) { return b > a || b != b ? b : a; }

// exp(lse - base) for lse <= base, within 3 u and the rounding of the difference; 0 for lse = -Inf and below 2^-150;
// NaN for a NaN and for lse = base = +Inf.
LAMINA_INLINE constexpr float exp_of_difference(float lse, float base) {
  if (lse == kEmpty) return 0.0f;
  const float z = base - lse;
  return z == z ? exp_minus(magnitude(z, kExpEnd)) * 0x1p-31f : z;
}

// log(x) for 1 <= x < 2^31, within 0.51 units of the last place of f32; NaN for NaN. x = 2^n m with m in [2/3, 4/3);
// log(m) = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 1/5. The next term of the series is below 2^-33 |s|.
LAMINA_INLINE constexpr float log_of_sum(float x) {
  if (x != x) return x;
  constexpr double kLn2 = 0x1.62e42fefa39efp-1;
  constexpr int32_t kTwoThirds = std::bit_cast<int32_t>(0x1.555556p-1f);
  const int32_t bits = std::bit_cast<int32_t>(x);
  const int32_t n = (bits - kTwoThirds) >> 23;
  const double m = static_cast<double>(std::bit_cast<float>(bits - (n << 23)));
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double p = 1.0 / 13.0;
  p = p * square + 1.0 / 11.0;
  p = p * square + 1.0 / 9.0;
  p = p * square + 1.0 / 7.0;
  p = p * square + 1.0 / 5.0;
  p = p * square + 1.0 / 3.0;
  p = p * square + 1.0;
  return static_cast<float>(static_cast<double>(n) * kLn2 + 2.0 * s * p);
}

static_assert(exp_of_difference(3.0f, 3.0f) == 1.0f && log_of_sum(1.0f) == 0.0f);
static_assert(log_of_sum(2.0f) == 0x1.62e430p-1f);

}  // namespace lamina::merge_attention_states
