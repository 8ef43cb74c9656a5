// Emulates ptx/convert.cuh.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "base/numeric.h"
#include "device/emu/executor.h"

namespace lamina::dev {

// Bit i of kTable is the result for the bits (a, b, c) of i; a is the highest bit of i.
template <uint32_t kTable>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d = 0;
  for (uint32_t i = 0; i < 8; ++i)
    if (kTable >> i & 1u) d |= (i & 4u ? a : ~a) & (i & 2u ? b : ~b) & (i & 1u ? c : ~c);
  return d;
}

// Byte i of the result is the byte of b:a with the number in nibble i of the selector; if bit 3 is set, the byte's
// sign in every bit.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15u;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (nibble & 7u))) & 0xffu;
    if (nibble & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    d |= byte << (8 * i);
  }
  return d;
}

// In PTX every NaN becomes the canonical NaN.
inline uint16_t f32_to_f16(float value) {
  return std::isnan(value) ? uint16_t{0x7fff} : from_f32<F16>(value).bits;
}
inline float f16_to_f32(uint16_t bits) { return to_f32(F16{bits}); }
inline uint16_t f32_to_bf16(float value) {
  return std::isnan(value) ? uint16_t{0x7fff} : from_f32<BF16>(value).bits;
}
inline float bf16_to_f32(uint16_t bits) { return to_f32(BF16{bits}); }

inline uint32_t f32_to_f16x2(float low, float high) {
  return static_cast<uint32_t>(f32_to_f16(high)) << 16 | f32_to_f16(low);
}
inline uint32_t f32_to_bf16x2(float low, float high) {
  return static_cast<uint32_t>(f32_to_bf16(high)) << 16 | f32_to_bf16(low);
}

inline bool converts_e4m3() { return emu::device().compute_capability >= 89; }
inline uint32_t e4m3x2_to_f16x2(uint16_t pair) {
  uint32_t d = 0;
  for (int i = 0; i < 2; ++i)
    d |= static_cast<uint32_t>(f32_to_f16(to_f32(E4M3{static_cast<uint8_t>(pair >> 8 * i)})))
         << 16 * i;
  return d;
}

inline float f32_max(float a, float b) { return std::fmax(a, b); }

namespace emu {

inline float flush_subnormal(float v) {
  return std::abs(v) < 0x1p-126f ? std::copysign(0.0f, v) : v;
}

}  // namespace emu

// The emulated approximations are as good as f32 allows; the bounds of kernels hold for those of the PTX ISA.
inline float exp2_approx(float a) {
  const float exact = static_cast<float>(std::exp2(static_cast<double>(emu::flush_subnormal(a))));
  return emu::flush_subnormal(exact);
}
inline float log2_approx(float a) { return static_cast<float>(std::log2(static_cast<double>(a))); }

namespace emu {

template <class Half, class Combine>
uint32_t per_half(uint32_t a, uint32_t b, uint32_t c, const Combine& combine) {
  uint32_t d = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const auto part = [&](uint32_t v) {
      return static_cast<double>(to_f32(Half{static_cast<uint16_t>(v >> shift)}));
    };
    d |= static_cast<uint32_t>(combine(part(a), part(b), part(c))) << shift;
  }
  return d;
}

// A double holds a * b + c of halves exactly, unless the exponents are far apart. In that case rounding to odd keeps
// the second rounding correct.
template <class Half>
uint16_t round_fma(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  const double rest = c - (sum - product) + (product - (sum - (sum - product)));
  uint64_t bits = std::bit_cast<uint64_t>(sum);
  if (rest != 0 && std::isfinite(sum) && !(bits & 1u))
    bits += (rest > 0) == (sum > 0) ? 1u : ~uint64_t{0};
  // The step to f32 rounds to odd too, so that only the last step rounds to nearest.
  const double odd = std::bit_cast<double>(bits);
  float narrow = static_cast<float>(odd);
  if (static_cast<double>(narrow) != odd && std::isfinite(narrow) && std::isfinite(odd)) {
    uint32_t word = std::bit_cast<uint32_t>(narrow);
    const bool too_far = std::abs(static_cast<double>(narrow)) > std::abs(odd);
    if (too_far) --word;  // towards zero
    narrow = std::bit_cast<float>(word | 1u);
  }
  if (std::isnan(narrow)) return 0x7fff;
  return from_f32<Half>(narrow).bits;
}

}  // namespace emu

inline uint32_t f16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  return emu::per_half<F16>(a, b, c, emu::round_fma<F16>);
}
inline uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  return emu::per_half<BF16>(a, b, c, emu::round_fma<BF16>);
}
inline uint32_t f16x2_add(uint32_t a, uint32_t b) {
  return emu::per_half<F16>(
      a, b, 0, [](double x, double y, double) { return emu::round_fma<F16>(x, 1, y); });
}
inline uint32_t f16x2_mul(uint32_t a, uint32_t b) {
  return emu::per_half<F16>(
      a, b, 0, [](double x, double y, double) { return emu::round_fma<F16>(x, y, -0.0); });
}

inline int32_t dot4_s8(uint32_t a, uint32_t b, int32_t c) {
  uint32_t sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 32; i += 8)
    sum += static_cast<uint32_t>(static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i));
  return static_cast<int32_t>(sum);
}

}  // namespace lamina::dev
