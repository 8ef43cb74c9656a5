// Elements of one byte as pairs of 16-bit floats, exactly.
#pragma once

#include "base/numeric.h"
#include "device/device.h"
#include "ops/paged_attention/cuda/run.h"

namespace lamina::paged_attention {

// pairs[i] = bytes 2 i and 2 i + 1 of the word, the first in the low half.
template <Elements kElements, class To>
LAMINA_DEVICE void widen(uint32_t word, uint32_t (&pairs)[2]) {
  constexpr uint32_t kLowBytes[2] = {0x4140u, 0x4342u};   // the byte below byte 4 of {filler, word}
  constexpr uint32_t kHighBytes[2] = {0x1404u, 0x3424u};  // the byte above it
  constexpr uint32_t kSpreadSigns[2] = {0x9988u, 0xbbaau};
  constexpr bool kIsF16 = std::is_same_v<To, F16>;
  if constexpr (kElements == Elements::kInt8) {
    // 0x6400 + u is the f16 1024 + u, for u = byte + 128.
    if constexpr (kIsF16) word = word ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kIsF16) {
        pairs[i] = dev::f16x2_add(dev::prmt(word, 0x64646464u, kLowBytes[i]), 0xe480e480u);
      } else {
        // 0x4300 + u is the bf16 128 + u, for the low seven bits u; with the sign bit 256 is to be subtracted, else 128.
        const uint32_t bits = dev::prmt(word, 0x43434343u, kLowBytes[i]);
        const uint32_t minus = dev::lop3<0xea>(bits, 0x00800080u, 0xc300c300u);  // (a & b) | c
        pairs[i] = dev::bf16x2_fma(bits & 0xff7fff7fu, 0x3f803f80u, minus);
      }
    }
  } else {
    // Exponent and mantissa in place, with the wrong bias: multiply by 2^8 or 2^120. NaN is the byte 0x7f or 0xff: adding 1
    // sets its highest bit, which prmt spreads over both bytes of the element. A branch here costs no fewer
    // instructions, and the compiler a minute.
    const uint32_t nans = (word & 0x7f7f7f7fu) + 0x01010101u;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t bits = dev::prmt(word, 0, kHighBytes[i]);
      const uint32_t nan = dev::prmt(nans, 0, kSpreadSigns[i]);
      if constexpr (kIsF16) {
        const uint32_t magnitude = dev::lop3<0xea>(bits >> 1, 0x3f803f80u, nan);
        pairs[i] = dev::f16x2_mul(dev::lop3<0xea>(bits, 0x80008000u, magnitude), 0x5c005c00u);
      } else {
        const uint32_t magnitude = dev::lop3<0xea>(bits >> 4, 0x07f007f0u, nan);
        pairs[i] = dev::bf16x2_fma(dev::lop3<0xea>(bits, 0x80008000u, magnitude), 0x7b807b80u,
                                   0x80008000u);
      }
    }
  }
}

}  // namespace lamina::paged_attention
