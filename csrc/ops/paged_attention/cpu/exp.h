// The elementary functions of the softmax, on vectors of f32. Every step is a named f32 operation, so all instruction
// sets give the same bits.
#pragma once

#include <cmath>
#include <limits>

#include "base/unroll.h"

namespace lamina::paged_attention {
namespace {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// exp(x) for x <= 0; 0 for x below -87, which is less than 2^-125; NaN for NaN. exp(0) is exactly 1.
// x = n ln 2 + r with |r| <= ln 2 / 2; n ln 2 in two parts is exact for |n| < 2^9. The polynomial (Cephes expf) is
// within 2^-23.6 of exp(r) and its roundings add less than 2^-23.7: the result is within 2 u of exp(x), u = 2^-23.
template <class Simd>
LAMINA_INLINE inline typename Simd::F exp(typename Simd::F x) {
  using F = typename Simd::F;
  constexpr float kRound = 0x1.8p23f;  // adding it rounds to an integer, in the low bits
  const F shifted = Simd::fma(x, Simd::set(0x1.715476p+0f), Simd::set(kRound));
  const F n = Simd::sub(shifted, Simd::set(kRound));
  F r = Simd::fma(n, Simd::set(-0x1.63p-1f), x);
  r = Simd::fma(n, Simd::set(0x1.bd0106p-13f), r);
  F y = Simd::set(1.9875691500e-4f);
  y = Simd::fma(y, r, Simd::set(1.3981999507e-3f));
  y = Simd::fma(y, r, Simd::set(8.3334519073e-3f));
  y = Simd::fma(y, r, Simd::set(4.1665795894e-2f));
  y = Simd::fma(y, r, Simd::set(1.6666665459e-1f));
  y = Simd::fma(y, r, Simd::set(5.0000001201e-1f));
  y = Simd::add(Simd::fma(y, Simd::mul(r, r), r), Simd::set(1.0f));
  // The low bits of `shifted` hold n; as an exponent they make 2^n.
  const F power = Simd::as_float(
      Simd::template shift_left<23>(Simd::add(Simd::as_int(shifted), Simd::set_int(127))));
  return Simd::if_less(x, Simd::set(-87.0f), Simd::set(0.0f), Simd::mul(y, power));
}

// tanh(x) = sign(x) (1 - t) / (1 + t), t = exp(-2 |x|); within 2^-22.
template <class Simd>
LAMINA_INLINE inline typename Simd::F tanh(typename Simd::F x) {
  using F = typename Simd::F;
  const F magnitude = Simd::as_float(Simd::bit_and(Simd::as_int(x), Simd::set_int(0x7fffffff)));
  const auto sign = Simd::bit_and(Simd::as_int(x), Simd::set_int(INT32_MIN));
  const F t = exp<Simd>(Simd::mul(magnitude, Simd::set(-2.0f)));
  const F y = Simd::div(Simd::sub(Simd::set(1.0f), t), Simd::add(Simd::set(1.0f), t));
  return Simd::as_float(Simd::bit_or(Simd::as_int(y), sign));
}

// exp(x) of one number, with the same bits.
template <class Simd>
LAMINA_INLINE inline float exp_of(float x) {
  return Simd::first(exp<Simd>(Simd::set(x)));
}

}  // namespace
}  // namespace lamina::paged_attention
