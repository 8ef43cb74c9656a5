// How one element of a cache is encoded and decoded, for every backend.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "base/numeric.h"
#include "base/unroll.h"
#include "quant/int8.h"

namespace lamina::paged_kv {

template <class Code>
inline constexpr float kLargestCode = std::is_same_v<Code, int8_t> ? 127.0f : 448.0f;

// The scale of a row of its own, from its largest magnitude; NaN if the row has a NaN or an Inf.
template <class Code>
LAMINA_INLINE constexpr float scale_of_row(float largest) {
  return largest <= FLT_MAX ? std::max(largest / kLargestCode<Code>, FLT_MIN)
                            : std::numeric_limits<float>::quiet_NaN();
}

template <class Code>
class Encoder;

template <>
class Encoder<int8_t> {
 public:
  LAMINA_INLINE explicit constexpr Encoder(float scale) : quantizer_({scale, 0}, true) {}
  LAMINA_INLINE constexpr int8_t operator()(float x) const {
    return x != x ? int8_t{0} : quantizer_(x);
  }

 private:
  Quantizer quantizer_;
};

template <>
class Encoder<E4M3> {
 public:
  LAMINA_INLINE explicit constexpr Encoder(float scale) : inverse_(1.0f / scale) {}
  LAMINA_INLINE constexpr E4M3 operator()(float x) const {
    return from_f32<E4M3>(clamp(x * inverse_, -kLargestCode<E4M3>, kLargestCode<E4M3>));
  }

 private:
  float inverse_;
};

}  // namespace lamina::paged_kv
