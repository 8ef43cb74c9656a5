// f32, f16, bf16 and float8 e4m3fn as storage types. Conversions are branch-free integer maths, which compilers vectorise and which
// gives the same bits as the hardware (round to nearest even, NaN stays NaN).
#pragma once

#include <bit>
#include <cstdint>

#include "base/unroll.h"

namespace lamina {

enum class DType : int8_t { kF32, kF16, kBF16 };

constexpr int64_t size_bytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};
// Float8 without infinities: 4 bits of exponent with bias 7, 3 of mantissa, largest value 448, 0x7f is NaN.
struct E4M3 {
  uint8_t bits;
};

constexpr float to_f32(float value) { return value; }

constexpr float to_f32(BF16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

constexpr float to_f32(F16 value) {
  const uint32_t sign = (static_cast<uint32_t>(value.bits) & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // Normal, Inf, NaN: shift the fields into place and rebias the exponent by 127 - 15; twice for exponent 31 (Inf,
  // NaN).
  const uint32_t normal =
      (magnitude << 13) + (112u << 23) + (magnitude >= 0x7c00u ? 112u << 23 : 0u);
  // Subnormal: a multiple of 2^-24, exact in f32.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  return std::bit_cast<float>(sign | (magnitude < 0x0400u ? subnormal : normal));
}

constexpr float to_f32(E4M3 value) {
  const uint32_t sign = (static_cast<uint32_t>(value.bits) & 0x80u) << 24;
  const uint32_t magnitude = value.bits & 0x7fu;
  const uint32_t normal = (magnitude << 20) + (120u << 23);
  // Subnormal: a multiple of 2^-9, exact in f32.
  const uint32_t subnormal =
      std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f);
  const uint32_t finite = magnitude < 8 ? subnormal : normal;
  return std::bit_cast<float>(sign | (magnitude == 0x7fu ? 0x7fc00000u : finite));
}

template <class T>
T from_f32(float value);

template <>
LAMINA_INLINE constexpr float from_f32<float>(float value) {
  return value;
}

template <>
LAMINA_INLINE constexpr BF16 from_f32<BF16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return BF16{static_cast<uint16_t>(is_nan ? quiet_nan : rounded)};
}

template <>
LAMINA_INLINE constexpr F16 from_f32<F16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: rebias, then round the 13 dropped bits to nearest even; a carry moves into the
  // exponent and, above 65504 + half a step, into the code of Inf.
  const uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: the addition of 0.5 puts the unit in the last place at 2^-24, so the f32 adder does the rounding.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) -
                             std::bit_cast<uint32_t>(0.5f);
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return F16{static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? overflow : finite))};
}

// Values that would round beyond 448 become NaN, as there is no infinity.
template <>
LAMINA_INLINE constexpr E4M3 from_f32<E4M3>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (120u << 23) + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
  // Below 2^-6: the addition of 2^14 puts the unit in the last place at 2^-9.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) -
                             std::bit_cast<uint32_t>(0x1p14f);
  const uint32_t finite = magnitude < (121u << 23) ? subnormal : normal;
  const bool is_nan = magnitude >= std::bit_cast<uint32_t>(480.0f);
  return E4M3{static_cast<uint8_t>(sign | (is_nan ? 0x7fu : finite))};
}

static_assert(from_f32<F16>(65504.0f).bits == 0x7bff && from_f32<F16>(65519.9f).bits == 0x7bff);
static_assert(from_f32<F16>(65520.0f).bits == 0x7c00 && from_f32<F16>(0x1p-24f).bits == 1);
static_assert(from_f32<F16>(0x1p-25f).bits == 0 && from_f32<F16>(0x1.8p-25f).bits == 1);
static_assert(to_f32(F16{0x7bff}) == 65504.0f && to_f32(F16{1}) == 0x1p-24f);
static_assert(from_f32<BF16>(1.00390625f).bits == 0x3f80 &&
              from_f32<BF16>(1.01171875f).bits == 0x3f82);
static_assert(from_f32<E4M3>(448.0f).bits == 0x7e && from_f32<E4M3>(464.0f).bits == 0x7e);
static_assert(from_f32<E4M3>(465.0f).bits == 0x7f && from_f32<E4M3>(-0x1p-10f).bits == 0x80);
static_assert(to_f32(E4M3{0x7e}) == 448.0f && to_f32(E4M3{0x81}) == -0x1p-9f);

}  // namespace lamina
