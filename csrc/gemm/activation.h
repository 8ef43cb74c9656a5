// The activations, for every backend: branch-free f32 steps in a fixed order, without contraction or a maths library,
// so that compilers vectorise them and every backend gets the same bits.
//
//   activation(y) = max(y, 0) - t * tail(t)         t = |y|
//     silu        tail = e / (1 + e)                e = exp(-t)
//     gelu_tanh   tail = e / (1 + e)                e = exp(-2 sqrt(2 / pi) (t + 0.044715 t^3))
//     gelu        tail = e * P(t) / Q(t)            e = exp(-t^2 / 2),   P / Q ~ erfcx(t / sqrt(2)) / 2
//
// In this form nothing cancels, so negative y keep their relative accuracy. With u = 2^-24 each activation is within
//   6 u |activation(y)| (1 + c min(y, 0)^2) + 2^-148     c = 0 for silu, 1 for gelu and gelu_tanh
// of the exact value for every f32 y. (gelu magnifies a relative error of y itself by y^2.) NaN gives NaN, +Inf gives
// +Inf; -Inf, -0 and every y whose result underflows give -0. Reference: tests/reference/activation.py
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "base/unroll.h"

namespace lamina {

enum class Activation : int8_t { kNone, kGelu, kGeluTanh, kSilu };

// Exponentials are in units of 2^-31. Below 2^-158 they are exactly 0: there t exp(-z) is less than half the smallest
// subnormal. This clamp also spares a CPU the microcode trap for subnormal results.
inline constexpr float kExpUnit = 0x1p31f, kExpEnd = 109.6f;

// 2^31 exp(-z) for 0 <= z < 109.8, within 2 u: 2^-n exp(r), n = rint(z / ln 2), r = n ln 2 - z.
LAMINA_INLINE constexpr float exp_minus(float z) {
  // 1.5 * 2^23 leaves a whole number in the low mantissa bits; 127 + 31 makes it the exponent of 2^(31-n).
  constexpr float kRound = 12582912.0f + 127.0f + 31.0f;
  // ln 2 in two parts. The first part has 15 bits, so its product with n is exact.
  constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  const float biased = kRound - z * 0x1.715476p+0f;
  const float n = kRound - biased;
  const float r = (n * kLn2High - z) + n * kLn2Low;
  float p = 0x1.6a2410p-10f;  // minimax for |r| <= ln 2 / 2, its error 0.06 u
  p = p * r + 0x1.1239e0p-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(std::bit_cast<uint32_t>(biased) << 23);
}

// min(|y|, most). Integers are compared, because every ISA has one instruction for their minimum; NaN becomes `most`.
LAMINA_INLINE constexpr float magnitude(float y, float most) {
  return std::bit_cast<float>(
      std::min(std::bit_cast<int32_t>(y) & 0x7fffffff, std::bit_cast<int32_t>(most)));
}

// t tail(t) for the logistic tails: e / (1 + e), e = exp(-z).
LAMINA_INLINE constexpr float logistic_tail(float t, float z) {
  const float e = exp_minus(z);
  return t * e / (kExpUnit + e);
}

LAMINA_INLINE constexpr float normal_tail(float t) {
  // Minimax in relative error on [0, 15], 0.15 u. All coefficients are positive, so no step cancels.
  float p = 0x1.102eccp-8f;
  p = p * t + 0x1.4ee548p-5f;
  p = p * t + 0x1.78c454p-3f;
  p = p * t + 0x1.c1d33cp-2f;
  p = p * t + 0.5f;
  float q = 0x1.55207cp-7f;
  q = q * t + 0x1.a3c126p-4f;
  q = q * t + 0x1.e2b852p-2f;
  q = q * t + 0x1.349e96p+0f;
  q = q * t + 0x1.ad2bcep+0f;
  q = q * t + 1.0f;
  return t * p * exp_minus(t * t * 0.5f) / (kExpUnit * q);
}

template <Activation kActivation>
LAMINA_INLINE constexpr float activate(float y) {
  if constexpr (kActivation == Activation::kNone) return y;
  // max(y, 0), but -0 for y < 0, so that the result is the negated tail, and -0 where the tail is 0.
  const float positive = y < 0.0f ? -0.0f : y;
  // t is clamped where z passes kExpEnd.
  if constexpr (kActivation == Activation::kGelu)
    return positive - normal_tail(magnitude(y, 14.805f));
  if constexpr (kActivation == Activation::kGeluTanh) {
    const float t = magnitude(y, 10.895f);
    return positive - logistic_tail(t, t * (0x1.988454p+0f + 0x1.2444f2p-4f * (t * t)));
  }
  const float t = magnitude(y, kExpEnd);
  return positive - logistic_tail(t, t);
}

static_assert(exp_minus(kExpEnd) == 0.0f && exp_minus(109.8f) == 0.0f);
static_assert(activate<Activation::kGelu>(-14.805f) == 0.0f &&
              activate<Activation::kGeluTanh>(-10.895f) == 0.0f);

}  // namespace lamina
