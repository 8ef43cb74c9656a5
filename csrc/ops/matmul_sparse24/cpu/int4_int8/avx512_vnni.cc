// matmul_sparse24_int4_int8 / avx512_vnni: vpshufb picks the activations of the kept codes. vpdpbusd multiplies them,
// as a + 128, by code - 8, and adds four products in int32. When a group ends, 128 times the sum of its weights in a
// column is subtracted.
//
// Where there is only one panel of rows, it unpacks codes in registers, to 16 * (code - 8). The codes of an odd step
// are in the high halves of bytes, and one vpternlogd unpacks them; those of an even step need a shift first. The sums
// are divided by 16 when a group ends.
//
// Count  For one row, a span (512 dense weights: 16 columns of 32 input features) takes four vpshufb and four vpdpbusd,
//        where the dense kernel takes 8 vpdpbusd. For all rows together, the indices take 5 uops, codes in registers 6
//        and the sums of columns 4 (vpdpbusd). Zen 4 has four pipes of 256 bits, so it starts two uops of 512 bits a
//        cycle. vpdpbusd has two of the pipes and vpshufb two, and they share one, so both have three: a further row
//        takes 5.3 cycles, dense 8. One row: 23 uops, 11.5 cycles, for 192 bytes; dense 20 uops, 10 cycles, for 256
//        bytes. Four rows: 47 uops, 24 cycles; dense 32 cycles.
// Tile   8 rows x 32 columns = 16 sums + 2 x (indices, weights) + row, picked and constants of 32 registers. With codes,
//        4 rows x 32 columns or 8 rows x 16 columns, because the scaled sums of the k chunk are in registers too
#include <array>

#include "base/avx512.h"
#include "base/unroll.h"
#include "gemm/cpu/pack_bytes.h"
#include "ops/matmul_sparse24/cpu/int8/int4_nest.h"
#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

constexpr int kStepK = sparse24_rows::kStepK, kSteps = sparse24_rows::kSteps;

__m512i load(const void* at) { return _mm512_loadu_si512(at); }

void store(void* at, __m512i v) { _mm512_storeu_si512(at, v); }

__m512i ones() { return _mm512_set1_epi8(1); }

// 16 times the weights whose codes are in the high halves of bytes.
LAMINA_INLINE inline __m512i weights_16(__m512i codes) {
  constexpr int kXorOfAnd = 0x6a;
  return _mm512_ternarylogic_epi32(codes, _mm512_set1_epi8(static_cast<char>(0xf0)),
                                   _mm512_set1_epi8(static_cast<char>(kSymmetricZeroPoint << 4)),
                                   kXorOfAnd);
}

// The low halves of bytes as weights.
LAMINA_INLINE inline __m512i low_weights(__m512i codes) {
  return _mm512_sub_epi8(_mm512_and_si512(codes, _mm512_set1_epi8(15)),
                         _mm512_set1_epi8(kSymmetricZeroPoint));
}

// For vpshufb: which bytes of the 8 activations of a step its values multiply. Shifted right by 4, the result serves
// the step after the next one. Values 2 and 3 belong to the second group of the step. vpshufb ignores bits 4 to 6, and
// the 8 activations are there twice, so bit 3 does not matter either.
template <int kParity>
LAMINA_INLINE inline __m512i pick_of(const uint8_t* span) {
  constexpr int kOrOfAnd = 0xea;
  __m512i indices = load(span);
  if constexpr (kParity != 0) indices = _mm512_srli_epi32(indices, 2);
  return _mm512_ternarylogic_epi32(indices, _mm512_set1_epi8(0x33), _mm512_set1_epi32(0x44440000),
                                   kOrOfAnd);
}

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 8, kRowStep = 1;
  static constexpr int kTileN = 4 * sparse24_rows::kTileN;
  static constexpr int kOffset = 128;
  static constexpr bool kScales = true;
  static constexpr int kCodesK = sparse24_rows::kSpanK;
  static constexpr int tiles_at_once(int64_t) { return kTileN / sparse24_rows::kTileN; }
  static constexpr int packed_bytes(int rows) {
    return rows * sparse24_rows::kTileK;
  }  // [step of 8 k][row][8]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_groups(a, a_stride, rows, k, uint64_t{0x8080808080808080u}, packed);
  }

  static void add_sums(const int8_t* values, int32_t* sums) {
    store(sums, _mm512_dpbusd_epi32(load(sums), ones(), load(values)));
  }

  static void expand_spans(const uint8_t* from, int64_t spans, int8_t* to, int32_t* sums) {
    __m512i sum = _mm512_setzero_si512();
    for (; spans > 0; --spans, from += kCodeSpanBytes, to += kSpanBytes) {
      prefetch_codes(from);
      store(to, load(from));
      __m512i bytes = _mm512_setzero_si512();
      unroll<2>([&](auto half) LAMINA_INLINE {
        const __m512i codes = load(from + (1 + half) * 64);
        int8_t* const values = to + (1 + 2 * half) * 64;
        const __m512i even = low_weights(codes), odd = low_weights(_mm512_srli_epi16(codes, 4));
        store(values, even);
        store(values + 64, odd);
        bytes = _mm512_add_epi8(bytes, _mm512_add_epi8(even, odd));
      });
      sum = _mm512_dpbusd_epi32(sum, ones(), bytes);
    }
    if (sums) store(sums, _mm512_add_epi32(load(sums), sum));
  }

  template <int kRows, int kTiles>
  using Sums = __m512i[kRows][kTiles];

  template <int kRows, int kTiles>
  LAMINA_INLINE static void each(const auto& body) {
    unroll<kTiles>([&](auto t) LAMINA_INLINE {
      unroll<kRows>([&](auto r) LAMINA_INLINE { body(r, t, r * kTileN + t * 16); });
    });
  }

  // Adds the products of a span to `sum`. With codes the sums are 16 times as large, and column_16 += 16 times the
  // weights of each column.
  template <int kRows, int kTiles, bool kAreCodes>
  LAMINA_INLINE static void add_span(const int8_t* a, const uint8_t* w, int64_t w_stride,
                                     Sums<kRows, kTiles>& sum, __m512i (&column_16)[kTiles]) {
    unroll<2>([&](auto parity) LAMINA_INLINE {
      __m512i pick[kTiles];
      unroll<kTiles>([&](auto t) LAMINA_INLINE { pick[t] = pick_of<parity>(w + t * w_stride); });
      unroll<2>([&](auto pair) LAMINA_INLINE {
        constexpr int kStep = 2 * pair + parity;
        __m512i weights[kTiles];
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          if constexpr (pair != 0) pick[t] = _mm512_srli_epi32(pick[t], 4);
          const uint8_t* const values = w + t * w_stride + sparse24_rows::kIndexBytes;
          if constexpr (kAreCodes) {
            __m512i codes = load(values + pair * kStepBytes);
            if constexpr (parity == 0) codes = _mm512_slli_epi16(codes, 4);
            weights[t] = weights_16(codes);
            column_16[t] = _mm512_dpbusd_epi32(column_16[t], ones(), weights[t]);
          } else {
            weights[t] = load(values + kStep * kStepBytes);
          }
        });
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          long long eight;
          std::memcpy(&eight, a + (kStep * kRows + r) * kStepK, sizeof eight);
          const __m512i row = _mm512_set1_epi64(eight);
          unroll<kTiles>([&](auto t) LAMINA_INLINE {
            sum[r][t] = in_order(
                _mm512_dpbusd_epi32(sum[r][t], _mm512_shuffle_epi8(row, pick[t]), weights[t]));
          });
        });
      });
    });
  }

  // y += x * scale.
  LAMINA_INLINE static void add_scaled(__m512i x, const float* scale, __m512& y) {
    y = _mm512_fmadd_ps(to_floats(x), _mm512_loadu_ps(scale), y);
  }

  // A GroupStep with codes, for kTiles tiles of 16 columns from `column` on.
  template <int kRows, int kTiles>
  LAMINA_INLINE static void multiply_codes(const GroupStep& step, int column) {
    const uint8_t* w = step.w + column / sparse24_rows::kTileN * step.w_stride;
    float* const to = step.y + column;
    const float* scale = step.scale + column;
    __m512 y[kRows][kTiles];
    each<kRows, kTiles>([&](auto r, auto t, int at)
                            LAMINA_INLINE { y[r][t] = _mm512_loadu_ps(to + at); });
    for (int64_t g = 0; g < step.groups; ++g, scale += step.scale_stride) {
      Sums<kRows, kTiles> sum;
      __m512i column_16[kTiles];
      each<kRows, kTiles>([&](auto r, auto t, int)
                              LAMINA_INLINE { sum[r][t] = column_16[t] = _mm512_setzero_si512(); });
      const int8_t* a = step.a + g * step.a_stride;
      const int64_t ahead = step.codes_ahead(g, kTileN);
      for (int64_t i = step.spans; i > 0; --i, w += kCodeSpanBytes, a += kSteps * kRows * kStepK) {
        unroll<kTiles>([&](auto t) LAMINA_INLINE { prefetch_codes(w + t * step.w_stride, ahead); });
        add_span<kRows, kTiles, true>(a, w, step.w_stride, sum, column_16);
      }
      if (step.accumulate || !step.ends || step.has_zero) {
        finish_codes<kRows, kTiles>(step, column, sum, column_16, scale, y);
        continue;
      }
      static_assert(kOffset == 1 << 7);
      __m512i offsets_16[kTiles];
      unroll<kTiles>([&](auto t)
                         LAMINA_INLINE { offsets_16[t] = _mm512_slli_epi32(column_16[t], 7); });
      each<kRows, kTiles>([&](auto r, auto t, int) LAMINA_INLINE {
        add_scaled(shift_right_signed<4>(_mm512_sub_epi32(sum[r][t], offsets_16[t])),
                   scale + t * 16, y[r][t]);
      });
    }
    each<kRows, kTiles>([&](auto r, auto t, int at)
                            LAMINA_INLINE { _mm512_storeu_ps(to + at, y[r][t]); });
  }

  // Ends a block of a group that has several blocks, or activations with a zero point.
  template <int kRows, int kTiles>
  LAMINA_INLINE static void finish_codes(const GroupStep& step, int column,
                                         Sums<kRows, kTiles>& sum, __m512i (&column_16)[kTiles],
                                         const float* scale, __m512 (&y)[kRows][kTiles]) {
    int32_t* const acc = step.acc + column;
    int32_t* const columns = step.sums + column;
    unroll<kTiles>([&](auto t) LAMINA_INLINE {
      const __m512i more = load(columns + t * 16);  // of the blocks before
      const __m512i column_sum = _mm512_add_epi32(more, shift_right_signed<4>(column_16[t]));
      if (!step.ends) store(columns + t * 16, column_sum);
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        constexpr int kAt = r * kTileN + t * 16;
        __m512i all = shift_right_signed<4>(sum[r][t]);
        if (step.accumulate) all = _mm512_add_epi32(all, load(acc + kAt));
        if (!step.ends) return store(acc + kAt, all);
        const __m512i offset = _mm512_mullo_epi32(column_sum, _mm512_set1_epi32(step.zero[r]));
        add_scaled(_mm512_sub_epi32(all, offset), scale + t * 16, y[r][t]);
      });
    });
  }

  // A GroupStep with weights as bytes in L1, which is one group, for kTiles tiles of 16 columns from `column` on.
  template <int kRows, int kTiles>
  LAMINA_INLINE static void multiply_bytes(const GroupStep& step, int column) {
    const uint8_t* w = step.w + column / sparse24_rows::kTileN * step.w_stride;
    const int8_t* a = step.a;
    int32_t* const acc = step.acc + column;
    Sums<kRows, kTiles> sum;
    each<kRows, kTiles>([&](auto r, auto t, int at) LAMINA_INLINE {
      sum[r][t] = step.accumulate ? load(acc + at) : _mm512_setzero_si512();
    });
    __m512i unused[kTiles];
    for (int64_t i = step.spans; i > 0; --i, w += kSpanBytes, a += kSteps * kRows * kStepK)
      add_span<kRows, kTiles, false>(a, w, step.w_stride, sum, unused);
    if (!step.ends)
      return each<kRows, kTiles>([&](auto r, auto t, int at)
                                     LAMINA_INLINE { store(acc + at, sum[r][t]); });
    const auto finish = [&](const auto& offset_of) LAMINA_INLINE {
      each<kRows, kTiles>([&](auto r, auto t, int at) LAMINA_INLINE {
        float* const to = step.y + column + at;
        __m512 y = _mm512_loadu_ps(to);
        add_scaled(_mm512_sub_epi32(sum[r][t], offset_of(r, load(step.sums + column + t * 16))),
                   step.scale + column + t * 16, y);
        _mm512_storeu_ps(to, y);
      });
    };
    if (step.has_zero) {
      finish([&](auto r, __m512i column_sum) LAMINA_INLINE {
        return _mm512_mullo_epi32(column_sum, _mm512_set1_epi32(step.zero[r]));
      });
    } else {
      finish([&](auto, __m512i column_sum)
                 LAMINA_INLINE { return _mm512_slli_epi32(column_sum, 7); });
    }
  }

  template <int kRows, bool kAreCodes>
  static void multiply_rows(const GroupStep& step) {
    constexpr int kTiles = kAreCodes && kRows > 4 ? 1 : 2;
    const auto multiply = [&](auto tiles, int tile) LAMINA_INLINE {
      if constexpr (kAreCodes) {
        multiply_codes<kRows, tiles>(step, tile * sparse24_rows::kTileN);
      } else {
        multiply_bytes<kRows, tiles>(step, tile * sparse24_rows::kTileN);
      }
    };
    int tile = 0;
    for (; tile + kTiles <= step.tiles_n; tile += kTiles)
      multiply(std::integral_constant<int, kTiles>{}, tile);
    if (kTiles > 1 && tile < step.tiles_n) multiply(std::integral_constant<int, 1>{}, tile);
  }

  template <bool kAreCodes>
  static void multiply(const GroupStep& step) {
    const auto product = std::array{multiply_rows<1, kAreCodes>, multiply_rows<2, kAreCodes>,
                                    multiply_rows<3, kAreCodes>, multiply_rows<4, kAreCodes>,
                                    multiply_rows<5, kAreCodes>, multiply_rows<6, kAreCodes>,
                                    multiply_rows<7, kAreCodes>, multiply_rows<8, kAreCodes>};
    product[static_cast<size_t>(step.rows - 1)](step);
  }

  static void add_groups(const GroupStep& step) {
    step.are_codes ? multiply<true>(step) : multiply<false>(step);
  }

  static void multiply(int rows, const int8_t* packed, const int8_t* w, int64_t w_stride,
                       int tiles_n, int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch) {
    GroupStep step{};
    step.rows = rows;
    step.a = packed;
    step.w = reinterpret_cast<const uint8_t*>(w);
    step.w_stride = w_stride;
    step.tiles_n = tiles_n;
    step.spans = tiles_k * sparse24_rows::kSpans;
    step.acc = acc;
    step.accumulate = accumulate;
    multiply<false>(step);
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int4_int8_avx512_vnni =
    make_int4_kernel<Tile>("matmul_sparse24_int4_int8_avx512_vnni", Isa::kAvx512Vnni, 150);

}  // namespace lamina::matmul_sparse24
