// Elements of one byte as pairs of 16-bit floats, exactly.
#pragma once

#include "base/numeric.h"
#include "device/device.h"
#include "ops/paged_attention/cuda/run.h"

namespace lamina::paged_attention {

// widen() divides integers by this power of 2. Half of the floats below 1 are subnormal there: u = byte + 128 in the low bits
// of a half is a subnormal u * 2^-24 of f16, or u * 2^-133 of bf16, which one fused multiply-add makes normal.
template <Elements kElements, class To>
inline constexpr float kUnit = kElements != Elements::kInt8 ? 1.0f
                               : std::is_same_v<To, F16>    ? 512.0f
                                                            : 64.0f;

// d = the two floats e4m3 as bf16.
LAMINA_DEVICE uint32_t e4m3x2_to_bf16x2(uint32_t pair) {
  const uint32_t half = dev::e4m3x2_to_f16x2(static_cast<uint16_t>(pair));
  return dev::f32_to_bf16x2(dev::f16_to_f32(static_cast<uint16_t>(half)),
                            dev::f16_to_f32(static_cast<uint16_t>(half >> 16)));
}

// The same where the GPU has no such conversion. Exponent and mantissa in place have the wrong bias: multiply by 2^8 or
// 2^120. NaN is the byte 0x7f or 0xff: adding 1 sets its highest bit, which prmt spreads over both bytes of the element. A
// branch here costs no fewer instructions, and the compiler a minute.
template <class To>
LAMINA_DEVICE void widen_e4m3(uint32_t word, uint32_t (&pairs)[2]) {
  constexpr uint32_t kHighBytes[2] = {0x1404u, 0x3424u};  // a byte above each zero of {word, 0}
  constexpr uint32_t kSpreadSigns[2] = {0x9988u, 0xbbaau};
  const uint32_t nans = (word & 0x7f7f7f7fu) + 0x01010101u;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t bits = dev::prmt(word, 0, kHighBytes[i]);
    const uint32_t nan = dev::prmt(nans, 0, kSpreadSigns[i]);
    if constexpr (std::is_same_v<To, F16>) {
      const uint32_t magnitude = dev::lop3<0xea>(bits >> 1, 0x3f803f80u, nan);
      pairs[i] = dev::f16x2_mul(dev::lop3<0xea>(bits, 0x80008000u, magnitude), 0x5c005c00u);
    } else {
      const uint32_t magnitude = dev::lop3<0xea>(bits >> 4, 0x07f007f0u, nan);
      pairs[i] =
          dev::bf16x2_fma(dev::lop3<0xea>(bits, 0x80008000u, magnitude), 0x7b807b80u, 0x80008000u);
    }
  }
}

// pairs[i] = bytes 2 i and 2 i + 1 of the word, the first in the low half; integers / kUnit.
template <Elements kElements, class To>
LAMINA_DEVICE void widen(uint32_t word, uint32_t (&pairs)[2]) {
  if constexpr (kElements == Elements::kInt8) {
    constexpr uint32_t kLowBytes[2] = {0x4140u, 0x4342u};  // a byte below each zero of {word, 0}
    word = word ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t bits = dev::prmt(word, 0, kLowBytes[i]);
      if constexpr (std::is_same_v<To, F16>) {
        pairs[i] = dev::f16x2_fma(bits, 0x78007800u, 0xb400b400u);  // * 2^15 - 0.25
      } else {
        pairs[i] = dev::bf16x2_fma(bits, 0x7f007f00u, 0xc000c000u);  // * 2^127 - 2
      }
    }
  } else if (!dev::converts_e4m3()) {
    widen_e4m3<To>(word, pairs);
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      pairs[i] = std::is_same_v<To, F16>
                     ? dev::e4m3x2_to_f16x2(static_cast<uint16_t>(word >> 16 * i))
                     : e4m3x2_to_bf16x2(word >> 16 * i);
  }
}

}  // namespace lamina::paged_attention
