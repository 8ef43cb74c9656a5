// paged_attention / avx2: eight lanes. Sums of a microkernel: 6 rows x 2 vectors, 12 of 16 registers.
#include <immintrin.h>

#include "ops/paged_attention/cpu/body.h"

namespace lamina::paged_attention {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kColumns = 16, kMaxRows = 6;
  static constexpr bool kPacksAhead = false;
  using F = __m256;
  using I = __m256i;

  static F load(const float* from) { return _mm256_loadu_ps(from); }
  static I load_int(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static void store(float* to, F x) { _mm256_storeu_ps(to, x); }
  static void store_int(int32_t* to, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
  }
  static F set(float x) { return _mm256_set1_ps(x); }
  static I set_int(int32_t x) { return _mm256_set1_epi32(x); }
  static float first(F x) { return _mm256_cvtss_f32(x); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F if_less(F a, F b, F yes, F no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static F keep_lanes(F x, int64_t low, int64_t high, float other) {
    const auto bound = [](int64_t value) {
      return set_int(static_cast<int32_t>(std::clamp<int64_t>(value, 0, kLanes)));
    };
    const I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const I keep = _mm256_andnot_si256(_mm256_cmpgt_epi32(bound(low), lane),
                                       _mm256_cmpgt_epi32(bound(high), lane));
    return _mm256_blendv_ps(set(other), x, as_float(keep));
  }
  static F as_float(I x) { return _mm256_castsi256_ps(x); }
  static I as_int(F x) { return _mm256_castps_si256(x); }
  static F to_floats(I x) { return _mm256_cvtepi32_ps(x); }
  template <int kBits>
  static I shift_left(I x) {
    return _mm256_slli_epi32(x, kBits);
  }
  template <int kBits>
  static I shift_right(I x) {
    return _mm256_srli_epi32(x, kBits);
  }
  template <int kBits>
  static I shift_right_signed(I x) {
    return _mm256_srai_epi32(x, kBits);
  }
  static I bit_and(I a, I b) { return _mm256_and_si256(a, b); }
  static I bit_or(I a, I b) { return _mm256_or_si256(a, b); }
  template <int kBytes>
  static I widen(const void* from) {
    if constexpr (kBytes == 4) {
      return load_int(from);
    } else if constexpr (kBytes == 2) {
      return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from)));
    } else {
      return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(from)));
    }
  }
  static F from_f16(I x) {
    const I halves = _mm256_packus_epi32(bit_and(x, set_int(0xffff)), _mm256_setzero_si256());
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08)));
  }
  // Pairs, then quads within halves of 128 bits, then halves.
  static void transpose(I (&rows)[8]) {
    I pairs[kLanes], quads[kLanes];
    unroll<4>([&](auto i) LAMINA_INLINE {
      pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
      pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    });
    unroll<2>([&](auto i) LAMINA_INLINE {
      unroll<2>([&](auto h) LAMINA_INLINE {
        quads[4 * i + 2 * h] = _mm256_unpacklo_epi64(pairs[4 * i + h], pairs[4 * i + 2 + h]);
        quads[4 * i + 2 * h + 1] = _mm256_unpackhi_epi64(pairs[4 * i + h], pairs[4 * i + 2 + h]);
      });
    });
    unroll<4>([&](auto i) LAMINA_INLINE {
      rows[i] = _mm256_permute2x128_si256(quads[i], quads[4 + i], 0x20);
      rows[4 + i] = _mm256_permute2x128_si256(quads[i], quads[4 + i], 0x31);
    });
  }
  template <int kVector>
  static void store_transposed(int32_t* to, int64_t stride, I x) {
    store_int(to + kVector * stride, x);
  }
};

}  // namespace

extern constinit const CpuKernel paged_attention_avx2 = {"paged_attention_avx2", Isa::kAvx2,
                                                         &compute<Avx2>};

}  // namespace lamina::paged_attention
