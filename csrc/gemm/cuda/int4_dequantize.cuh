// Turns int4 codes into the registers of an mma's operand a, f16 or bf16.
//
// A code ORed into the low mantissa bits of a power of two is the number power + code. One exact subtraction removes
// the power together with the zero point:  w = fma(q - zero, scale, shift), rounded once; zero is an integer from 0
// to 15.
#pragma once

#include <type_traits>

#include "base/numeric.h"
#include "device/device.h"

namespace lamina::gemm {

LAMINA_DEVICE uint32_t twice(uint16_t bits) { return bits | static_cast<uint32_t>(bits) << 16; }

template <class T>
LAMINA_DEVICE uint32_t twice(float value) {
  if constexpr (std::is_same_v<T, F16>) {
    return twice(dev::f32_to_f16(value));
  } else {
    return twice(dev::f32_to_bf16(value));
  }
}

// to_f32 in one instruction.
template <class T>
LAMINA_DEVICE float widened(T value) {
  if constexpr (std::is_same_v<T, F16>) {
    return dev::f16_to_f32(value.bits);
  } else {
    return dev::bf16_to_f32(value.bits);
  }
}

// The operands that turn the codes of one group into weights. Each is an array over a lane's two rows and holds its
// value in both halves of the word.
template <class T>
struct Dequantizer {
  static constexpr bool kIsF16 = std::is_same_v<T, F16>;
  static constexpr uint32_t kLow = 0x000f000f, kHigh = 0x00f000f0;
  static constexpr uint32_t kAndOr = 0xea;  // the truth table of a & b | c for lop3
  // 1024 in f16, 128 in bf16; 1/16 in f16, 1 in bf16.
  static constexpr uint32_t kMagic = kIsF16 ? 0x64006400 : 0x43004300;
  static constexpr uint32_t kSixteenth = 0x2c002c00, kOne = 0x3f803f80;

  uint32_t minus_zero[2], scale[2], shift[2];

  // row: 0 or 1.
  LAMINA_DEVICE void set_scale(int row, T row_scale) { scale[row] = twice(row_scale.bits); }

  // The nearest integer from 0 to 15 is subtracted exactly; the rest of the zero point goes into the shift.
  LAMINA_DEVICE void set_zero(int row, T row_scale, float zero) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: its last place is 1
    const float within = zero > 15.0f ? 15.0f : zero > 0.0f ? zero : 0.0f;
    const float whole = within + kRound - kRound;
    // In f16 the codes of the second row lie 4 bits higher: the word is 1024 + 16 q, and a sixteenth of that is 64 + q.
    const float base = kIsF16 ? (row == 0 ? 1024.0f : 64.0f) : 128.0f;
    minus_zero[row] = twice<T>(-(base + whole));
    shift[row] = twice<T>(whole == zero ? -0.0f : (whole - zero) * widened(row_scale));
  }

  // a = the operand of one product, from a lane's eight codes; or registers 2 * kHalf and 2 * kHalf + 1 of it, which belong
  // to half of its k.
  LAMINA_DEVICE void weights(uint32_t codes, uint32_t (&a)[4]) const {
    half_of_weights<0>(codes, a);
    half_of_weights<1>(codes, a);
  }
  template <int kHalf>
  LAMINA_DEVICE void half_of_weights(uint32_t codes, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 2 * kHalf; i < 2 * kHalf + 2; ++i) {
      const int row = i % 2;
      if constexpr (kIsF16) {
        const uint32_t pair =
            dev::lop3<kAndOr>(codes >> (i / 2 * 8), row == 0 ? kLow : kHigh, kMagic);
        const uint32_t q = row == 0 ? dev::f16x2_add(pair, minus_zero[0])
                                    : dev::f16x2_fma(pair, kSixteenth, minus_zero[1]);
        a[i] = dev::f16x2_fma(q, scale[row], shift[row]);
      } else {
        const uint32_t pair = dev::lop3<kAndOr>(codes >> (4 * i), kLow, kMagic);
        a[i] =
            dev::bf16x2_fma(dev::bf16x2_fma(pair, kOne, minus_zero[row]), scale[row], shift[row]);
      }
    }
  }
};

}  // namespace lamina::gemm
