// The AVX-512 intrinsics of the compiler or, with LAMINA_USE_SIMDE, SIMDe's, so that tests run the AVX-512 kernels on
// machines without AVX-512. Only the CPU kernels include this file.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(LAMINA_USE_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns about this header itself
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "base/numeric.h"

namespace lamina {
namespace {

// Instructions that SIMDe lacks. With SIMDe each function computes them lane by lane.
#if defined(LAMINA_USE_SIMDE)
template <class To, class From, class ToLane, class FromLane, class Body>
inline To each_lane(const From& from, const Body& body) {
  alignas(64) FromLane in[sizeof(From) / sizeof(FromLane)];
  alignas(64) ToLane out[sizeof(To) / sizeof(ToLane)];
  std::memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; ++i) out[i] = body(in[i]);
  To to;
  std::memcpy(&to, out, sizeof to);
  return to;
}
inline __m512 to_floats(__m512i x) {
  return each_lane<__m512, __m512i, float, int32_t>(
      x, [](int32_t i) { return static_cast<float>(i); });
}
inline __m512i to_ints(__m512 x) {
  return each_lane<__m512i, __m512, int32_t, float>(
      x, [](float f) { return static_cast<int32_t>(std::nearbyint(f)); });
}
inline __m512i widen_halves(__m256i x) {
  return each_lane<__m512i, __m256i, int32_t, uint16_t>(x, [](uint16_t i) { return i; });
}
inline __m256i low_halves(__m512i x) {
  return each_lane<__m256i, __m512i, uint16_t, uint32_t>(
      x, [](uint32_t i) { return static_cast<uint16_t>(i); });
}
// SIMDe subtracts signed integers, for which an overflow is undefined.
inline __m512i subtract(__m512i a, __m512i b) {
  const __m512i negated =
      each_lane<__m512i, __m512i, uint32_t, uint32_t>(b, [](uint32_t i) { return 0u - i; });
  return _mm512_add_epi32(a, negated);
}
inline __m128i low_bytes(__m512i x) {
  return each_lane<__m128i, __m512i, uint8_t, uint32_t>(
      x, [](uint32_t i) { return static_cast<uint8_t>(i); });
}
inline __m512i widen_bytes(__m128i x) {
  return each_lane<__m512i, __m128i, int32_t, uint8_t>(x, [](uint8_t i) { return i; });
}
inline __m512 floats_of_f16(__m256i x) {
  return each_lane<__m512, __m256i, float, uint16_t>(x, [](uint16_t i) { return to_f32(F16{i}); });
}
inline __m512 pick_in_quarters(__m512 x, __m512i index) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i three = _mm512_set1_epi32(3);
  const __m512i from =
      _mm512_or_si512(_mm512_andnot_si512(three, lanes), _mm512_and_si512(index, three));
  return _mm512_permutexvar_ps(from, x);
}
template <int kBits>
inline __m512i shift_right_signed(__m512i x) {
  return each_lane<__m512i, __m512i, int32_t, int32_t>(x, [](int32_t i) { return i >> kBits; });
}
// Like the instruction, with 0 for subnormal numbers.
inline __m512i to_bf16(__m512 a, __m512 b) {
  __m256i halves[2];
  for (int i = 0; i < 2; ++i)
    halves[i] = each_lane<__m256i, __m512, uint16_t, float>(i == 0 ? a : b, [](float f) {
      return from_f32<BF16>(std::fabs(f) < 0x1p-126f ? 0.0f : f).bits;
    });
  __m512i both;
  std::memcpy(&both, halves, sizeof both);
  return both;
}
// Like the instruction: the odd pair first, each product and sum rounded once, with 0 for subnormal operands and results.
inline __m512 dot_bf16(__m512 sum, __m512i a, __m512i b) {
  const auto flushed = [](float f) {
    return std::fabs(f) < 0x1p-126f ? std::copysign(0.0f, f) : f;
  };
  float sums[16];
  BF16 x[32], y[32];
  std::memcpy(sums, &sum, sizeof sums);
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  for (int i = 0; i < 16; ++i)
    for (const int at : {2 * i + 1, 2 * i})
      sums[i] = flushed(std::fma(flushed(to_f32(x[at])), flushed(to_f32(y[at])), flushed(sums[i])));
  std::memcpy(&sum, sums, sizeof sum);
  return sum;
}
#else
#if defined(__AVX512BF16__)
inline __m512 dot_bf16(__m512 sum, __m512i a, __m512i b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
inline __m512i to_bf16(__m512 a, __m512 b) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
}
#endif
inline __m512 to_floats(__m512i x) { return _mm512_cvtepi32_ps(x); }
inline __m512i to_ints(__m512 x) { return _mm512_cvtps_epi32(x); }
inline __m512i widen_halves(__m256i x) { return _mm512_cvtepu16_epi32(x); }
inline __m256i low_halves(__m512i x) { return _mm512_cvtepi32_epi16(x); }
inline __m512i subtract(__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); }
inline __m128i low_bytes(__m512i x) { return _mm512_cvtepi32_epi8(x); }
inline __m512i widen_bytes(__m128i x) { return _mm512_cvtepu8_epi32(x); }
inline __m512 floats_of_f16(__m256i x) { return _mm512_cvtph_ps(x); }
// Each lane takes the one of its quarter of x that the low two bits of `index` name.
inline __m512 pick_in_quarters(__m512 x, __m512i index) { return _mm512_permutevar_ps(x, index); }
template <int kBits>
inline __m512i shift_right_signed(__m512i x) {
  return _mm512_srai_epi32(x, kBits);
}
#endif

}  // namespace
}  // namespace lamina
