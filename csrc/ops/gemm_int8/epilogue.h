// The one definition of the epilogue maths: plain f32 in a fixed order, no contraction, so that
// every backend rounds alike.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/numeric.h"

namespace lamina::gemm_int8 {

// acc = sum a * w  ->  sum (a - zero_point) * w, given the column sum of w. int32 wraps on purpose:
// the result fits (see kMaxExactK) even where a term does not.
constexpr int32_t correct(int32_t acc, int32_t zero_point, int32_t w_sum) {
  return static_cast<int32_t>(static_cast<uint32_t>(acc) -
                              static_cast<uint32_t>(zero_point) * static_cast<uint32_t>(w_sum));
}
constexpr int64_t correct(int64_t acc, int32_t zero_point, int32_t w_sum) {
  return acc - static_cast<int64_t>(zero_point) * w_sum;
}

// -0.0f is the neutral element of IEEE addition: a missing bias is kNoBias.
inline constexpr float kNoBias = -0.0f;

template <class Out, class Acc>
constexpr Out finish(Acc acc, float a_scale, float w_scale, float bias) {
  return from_f32<Out>(static_cast<float>(acc) * a_scale * w_scale + bias);
}

}  // namespace lamina::gemm_int8
