// Sixteen lanes, for the kernels of AVX-512. Sums of a microkernel: 8 rows x 2 vectors, 16 of 32 registers. 12 rows would
// load less, but a call of theirs takes longer to begin and to end: 2 % of a call of 64 steps (Zen 4).
#pragma once

#include "base/avx512.h"
#include "ops/paged_attention/cpu/body.h"
#include "ops/paged_attention/cpu/int8_product.h"

namespace lamina::paged_attention {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16, kColumns = 32;
  static constexpr bool kPacksAhead = true;  // registers are left for it
#if defined(LAMINA_USE_SIMDE) || defined(__SANITIZE_ADDRESS__)
  static constexpr int kMaxRows = 3;  // the microkernels of 4 to 8 rows would compile for minutes
#else
  static constexpr int kMaxRows = 8;
#endif
  using F = __m512;
  using I = __m512i;

  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static I load_int(const void* from) { return _mm512_loadu_si512(from); }
  static void store(float* to, F x) { _mm512_storeu_ps(to, x); }
  static void store_int(int32_t* to, I x) { _mm512_storeu_si512(to, x); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static I set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static float first(F x) { return _mm_cvtss_f32(_mm512_castps512_ps128(x)); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static I subtract(I a, I b) { return lamina::subtract(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F if_less(F a, F b, F yes, F no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
  }
  static F keep_lanes(F x, int64_t low, int64_t high, float other) {
    const auto lanes_before = [](int64_t lane) {
      return (1u << std::clamp<int64_t>(lane, 0, kLanes)) - 1;
    };
    const auto keep = static_cast<__mmask16>(lanes_before(high) & ~lanes_before(low));
    return _mm512_mask_blend_ps(keep, set(other), x);
  }
  static F as_float(I x) { return _mm512_castsi512_ps(x); }
  static I as_int(F x) { return _mm512_castps_si512(x); }
  static F to_floats(I x) { return lamina::to_floats(x); }
  static I to_ints(F x) { return lamina::to_ints(x); }
  static I dot_u8s8(I sum, I a, I b) { return _mm512_dpbusd_epi32(sum, a, b); }
  static void store_low_bytes(int32_t* to, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low_bytes(x));
  }
  template <int kBits>
  static I shift_left(I x) {
    return _mm512_slli_epi32(x, kBits);
  }
  template <int kBits>
  static I shift_right(I x) {
    return _mm512_srli_epi32(x, kBits);
  }
  template <int kBits>
  static I shift_right_signed(I x) {
    return lamina::shift_right_signed<kBits>(x);
  }
  static I bit_and(I a, I b) { return _mm512_and_si512(a, b); }
  static I bit_or(I a, I b) { return _mm512_or_si512(a, b); }
  static I bit_xor(I a, I b) { return _mm512_xor_si512(a, b); }
  static I max_bits(I a, I b) { return _mm512_max_epu32(a, b); }
  template <int kBytes>
  static I widen(const void* from) {
    if constexpr (kBytes == 4) {
      return load_int(from);
    } else if constexpr (kBytes == 2) {
      return widen_halves(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
    } else {
      return widen_bytes(_mm_loadu_si128(static_cast<const __m128i*>(from)));
    }
  }
  static F from_f16(I x) { return floats_of_f16(low_halves(x)); }
  static void interleave_bytes(I a, I b, I& low, I& high) {
    low = _mm512_unpacklo_epi8(a, b);
    high = _mm512_unpackhi_epi8(a, b);
  }
  static void interleave_halves(I a, I b, I& low, I& high) {
    low = _mm512_unpacklo_epi16(a, b);
    high = _mm512_unpackhi_epi16(a, b);
  }
  // Pairs, then quads within each 128 bits, then halves: of 16 shuffles of 128-bit parts, which two would take the place
  // of, 8 permutations are left, and they store halves. Vector 4 h + c has dwords 8 h + c and 8 h + c + 4.
  static void transpose(I (&rows)[8]) {
    I pairs[8], quads[8];
    unroll<4>([&](auto i) LAMINA_INLINE {
      pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
      pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    });
    unroll<2>([&](auto i) LAMINA_INLINE {
      unroll<2>([&](auto h) LAMINA_INLINE {
        quads[4 * i + 2 * h] = _mm512_unpacklo_epi64(pairs[4 * i + h], pairs[4 * i + 2 + h]);
        quads[4 * i + 2 * h + 1] = _mm512_unpackhi_epi64(pairs[4 * i + h], pairs[4 * i + 2 + h]);
      });
    });
    const I low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const I high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
    unroll<4>([&](auto c) LAMINA_INLINE {
      rows[c] = _mm512_permutex2var_epi64(quads[c], low, quads[4 + c]);
      rows[4 + c] = _mm512_permutex2var_epi64(quads[c], high, quads[4 + c]);
    });
  }
  template <int kVector>
  static void store_transposed(int32_t* to, int64_t stride, I x) {
    int32_t* const row = to + (8 * (kVector / 4) + kVector % 4) * stride;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row), _mm512_castsi512_si256(x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + 4 * stride),
                        _mm512_extracti64x4_epi64(x, 1));
  }
};

}  // namespace
}  // namespace lamina::paged_attention
