// quantize_int8 on a CPU: plain loops that the compiler vectorises with each ISA's flags. They use
// integer maximum and minimum instead of float ones, which it could not reorder: the bit patterns
// of floats, with the magnitude of negative ones flipped, order like the floats, with NaN
// outermost.
#pragma once

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ops/quantize_int8/cpu/kernel.h"

namespace lamina::quantize_int8 {
namespace {

// Bit patterns, sign-extended to 32 bits, and back.
constexpr int32_t to_bits(float value) { return std::bit_cast<int32_t>(value); }
template <class Half>
constexpr int32_t to_bits(Half value) {
  return static_cast<int16_t>(value.bits);
}
template <class In>
constexpr In from_bits(int32_t bits) {
  if constexpr (sizeof(In) == 4) {
    return std::bit_cast<In>(bits);
  } else {
    return In{static_cast<uint16_t>(bits)};
  }
}

// Its own inverse.
constexpr int32_t order_key(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// The extremes of a row and 0. A NaN in the row is one of them.
struct Range {
  float low, high;

  bool has_nan() const { return low != low || high != high; }
  bool has_nan_or_inf() const { return !(low >= -FLT_MAX && high <= FLT_MAX); }
};

template <class In>
Range find_range(const In* x, int64_t k) {
  int32_t low = 0, high = 0;
  for (int64_t j = 0; j < k; ++j) {
    const int32_t key = order_key(to_bits(x[j]));
    low = std::min(low, key);
    high = std::max(high, key);
  }
  return {to_f32(from_bits<In>(order_key(low))), to_f32(from_bits<In>(order_key(high)))};
}

// 1.5 * 2^23: adding it to |v| < 2^22 leaves rint(v) in the low mantissa bits.
inline constexpr float kRound = 12582912.0f;

inline int32_t round_to_int(float v) {
  return std::bit_cast<int32_t>(v + kRound) - std::bit_cast<int32_t>(kRound);
}

template <class T>
T clamp(T value, T low, T high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

template <class In>
void quantize_row(const In* x, int64_t k, float scale, int32_t zero_point, int32_t q_min,
                  int8_t* q) {
  const float inverse = 1.0f / scale;
  // Clamping to whole numbers before rounding equals clamping after it.
  const float low = static_cast<float>(q_min - zero_point),
              high = static_cast<float>(127 - zero_point);
  for (int64_t j = 0; j < k; ++j)
    q[j] = static_cast<int8_t>(round_to_int(clamp(to_f32(x[j]) * inverse, low, high)) + zero_point);
}

struct Grid {
  float scale;
  int32_t zero_point;
};

inline Grid dynamic_grid(Range range, bool symmetric) {
  if (symmetric) return {std::max(std::max(range.high, -range.low) / 127.0f, FLT_MIN), 0};
  const float scale = std::max(range.high / 255.0f - range.low / 255.0f, FLT_MIN);
  return {scale, round_to_int(clamp(-128.0f - range.low * (1.0f / scale), -128.0f, 127.0f))};
}

template <class In>
void quantize_rows(const Params& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const In* const x = static_cast<const In*>(p.x) + i * p.x_stride;
    const Range range = find_range(x, p.k);
    const bool is_static = p.static_scale.is_given();
    int8_t* const q = p.q + i * p.k;
    Grid grid{std::numeric_limits<float>::quiet_NaN(), 0};
    if (is_static ? range.has_nan() : range.has_nan_or_inf()) {
      std::memset(q, 0, static_cast<size_t>(p.k));
    } else {
      grid = dynamic_grid(range, p.symmetric);
      if (is_static) grid = {p.static_scale[i], p.symmetric ? 0 : p.static_zero_point[i]};
      quantize_row(x, p.k, grid.scale, grid.zero_point, p.symmetric ? -127 : -128, q);
    }
    p.scale[i] = grid.scale;
    if (!p.symmetric) p.zero_point[i] = static_cast<int8_t>(grid.zero_point);
  }
}

inline CpuKernel make_kernel(const char* name, Isa isa) {
  return {name, isa, [](const Params& p, int64_t begin, int64_t end) {
            if (p.x_dtype == DType::kF32) quantize_rows<float>(p, begin, end);
            if (p.x_dtype == DType::kF16) quantize_rows<F16>(p, begin, end);
            if (p.x_dtype == DType::kBF16) quantize_rows<BF16>(p, begin, end);
          }};
}

}  // namespace
}  // namespace lamina::quantize_int8
