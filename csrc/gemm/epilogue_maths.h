// The one definition of the epilogue maths: plain f32 in a fixed order, no contraction, so that
// every backend rounds alike. A step whose operand is not given is left out:
//
//   y = scale(acc, a_scale[i], w_scale[j]) + bias[j], or the groups' sum + bias[j]
//   y = activate<kActivation>(y)                           gemm/activation.h
//   y = y * gate[i,j]
//   y = y + residual[i,j]
//   out[i,j] = from_f32<Out>(y), or requantize(quantizer, y)
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "base/numeric.h"
#include "quant/int8.h"

namespace lamina::gemm {

// acc = sum a * w  ->  sum (a - zero_point) * w, given the column sum of w. The int32 version wraps on purpose:
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

template <class Acc>
constexpr float scale(Acc acc, float a_scale, float w_scale) {
  return static_cast<float>(acc) * a_scale * w_scale;
}

// Adds the sum of one group to its k chunk. A k chunk starts at kNoSum, so a single group rounds like scale().
constexpr float add_group(int32_t acc, float a_scale, float w_scale, float k_chunk) {
  return std::fma(static_cast<float>(acc) * a_scale, w_scale, k_chunk);
}

// The neutral element again. A sum over no groups at all is 0, not kNoSum.
constexpr float kNoSum = -0.0f;
constexpr float empty_sum(int64_t groups) { return groups == 0 ? 0.0f : kNoSum; }

// A row with a NaN has no int8 form (ops/quantize_int8/quantize_int8.h), but a thread that stores a part of a row
// cannot see the other parts. So the epilogue stores a NaN as the one code that symmetric quantisation leaves free,
// and mark_nan_rows then handles the whole row (ops/gemm_int8/quantized.h).
inline constexpr int8_t kLost = -128;

constexpr int8_t requantize(const Quantizer& symmetric, float y) {
  const int8_t q = symmetric(y);
  return y == y ? q : kLost;
}

}  // namespace lamina::gemm
