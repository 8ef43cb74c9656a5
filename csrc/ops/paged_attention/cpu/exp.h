// The elementary functions of the softmax, on vectors of f32. Every step is a named f32 operation, so all instruction
// sets give the same bits.
#pragma once

#include <cmath>
#include <limits>

#include "base/unroll.h"

namespace lamina::paged_attention {
namespace {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr float kLog2E = 0x1.715476p+0f;

// 2^(factor x) for x <= 0, and 0 for x <= least = -126 / factor; NaN for NaN. x = 0 gives exactly 1.
// factor x = n + r with |r| <= 1/2, rounded once. The polynomial is twice the minimax polynomial of 2^r with constant term
// 1; with its roundings it is within 1.5 u of 2^r, u = 2^-23. The other factor is 2^(n-1), or 0 where n <= -126.
template <class Simd>
LAMINA_INLINE inline typename Simd::F exp2(typename Simd::F x, typename Simd::F factor,
                                           typename Simd::F least) {
  using F = typename Simd::F;
  // Adding it rounds to an integer: the low bits then hold n + 126, which shifted into the exponent is 2^(n-1).
  const F round = Simd::set(0x1.8p23f + 126.0f);
  x = Simd::max(least, x);
  const F shifted = Simd::fma(x, factor, round);
  const F r = Simd::fma(x, factor, Simd::sub(round, shifted));
  F y = Simd::set(0x1.5bba14p-9f);
  y = Simd::fma(y, r, Simd::set(0x1.3cea88p-6f));
  y = Simd::fma(y, r, Simd::set(0x1.c6b752p-4f));
  y = Simd::fma(y, r, Simd::set(0x1.ebf9bcp-2f));
  y = Simd::fma(y, r, Simd::set(0x1.62e42ap+0f));
  y = Simd::fma(y, r, Simd::set(2.0f));
  return Simd::mul(y, Simd::as_float(Simd::template shift_left<23>(Simd::as_int(shifted))));
}

template <class Simd>
LAMINA_INLINE inline typename Simd::F exp2(typename Simd::F x) {
  return exp2<Simd>(x, Simd::set(1.0f), Simd::set(-126.0f));
}

// tanh(x) = sign(x) (1 - t) / (1 + t), t = exp(-2 |x|); within 2^-22.
template <class Simd>
LAMINA_INLINE inline typename Simd::F tanh(typename Simd::F x) {
  using F = typename Simd::F;
  const F magnitude = Simd::as_float(Simd::bit_and(Simd::as_int(x), Simd::set_int(0x7fffffff)));
  const auto sign = Simd::bit_and(Simd::as_int(x), Simd::set_int(INT32_MIN));
  const F t = exp2<Simd>(Simd::mul(magnitude, Simd::set(-2.0f * kLog2E)));
  const F y = Simd::div(Simd::sub(Simd::set(1.0f), t), Simd::add(Simd::set(1.0f), t));
  return Simd::as_float(Simd::bit_or(Simd::as_int(y), sign));
}

// 2^x of one number, with the same bits.
template <class Simd>
LAMINA_INLINE inline float exp2_of(float x) {
  return Simd::first(exp2<Simd>(Simd::set(x)));
}

}  // namespace
}  // namespace lamina::paged_attention
