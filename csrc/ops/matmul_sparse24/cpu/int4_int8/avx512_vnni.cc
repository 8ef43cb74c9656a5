// matmul_sparse24_int4_int8 / avx512_vnni: vpshufb picks the activations of the kept codes, and vpdpbusd multiplies them,
// as a + 128, by code - 8 and adds four products in int32. 128 * the weights of a column are subtracted when a group ends.
//
// The codes of an even step are in the low halves of bytes: vpand and vpsubb make weights of them. The codes of an odd
// step are in the high halves: one vpternlogd makes 16 times the weights of them, and their sums have registers of their
// own, which are divided by 16 when a group ends. So codes need no shift, which would take a port of vpshufb.
//
// Count  A span, 512 dense weights, takes vpshufb and vpdpbusd four times a row, 8 uops, where the dense kernel has 8
//        vpdpbusd. The indices of all rows take 5 uops. A single panel unpacks codes in registers: 6 uops for the codes
//        and 4 for the sums of the columns. Zen 4 takes two uops a cycle, and a quarter fewer of shuffles, shifts and
//        vpdpbusd, which share three of its four halves: one row takes 11.5 cycles for 192 bytes and four rows take
//        24.7, the dense kernel 12 for 256 bytes and 32. Many rows: 5.6 cycles a row, dense 8.
// Tile   8 rows x 32 columns = 16 sums + 2 x (indices, weights) + row, picked and constants of 32 registers; with codes
//        4 rows x 32 columns or 8 rows x 16 columns, because even and odd steps have their own sums
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

LAMINA_INLINE inline __m512i even_weights(const uint8_t* codes) {
  return _mm512_sub_epi8(_mm512_and_si512(load(codes), _mm512_set1_epi8(15)),
                         _mm512_set1_epi8(kSymmetricZeroPoint));
}

// 16 times the weights of an odd step.
LAMINA_INLINE inline __m512i odd_weights_16(const uint8_t* codes) {
  constexpr int kXorOfAnd = 0x6a;
  return _mm512_ternarylogic_epi32(load(codes), _mm512_set1_epi8(static_cast<char>(0xf0)),
                                   _mm512_set1_epi8(static_cast<char>(kSymmetricZeroPoint << 4)),
                                   kXorOfAnd);
}

// The bytes of 8 activations that the values of a step take, for vpshufb; after a shift by 4 those of the step after
// the next. Values 2 and 3 belong to the second group of the step. vpshufb ignores bits 4 to 6, and the 8 activations
// are there twice, so bit 3 does not matter either.
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
    store(sums, _mm512_dpbusd_epi32(load(sums), _mm512_set1_epi8(1), load(values)));
  }

  static void expand_spans(const uint8_t* from, int64_t spans, int8_t* to, int32_t* sums) {
    __m512i sum = _mm512_setzero_si512();
    for (; spans > 0; --spans, from += kCodeSpanBytes, to += kSpanBytes) {
      prefetch_codes(from);
      store(to, load(from));
      __m512i bytes = _mm512_setzero_si512();
      unroll<2>([&](auto half) LAMINA_INLINE {
        const uint8_t* const codes = from + (1 + half) * 64;
        int8_t* const values = to + (1 + 2 * half) * 64;
        const __m512i even = even_weights(codes);
        const __m512i odd = _mm512_sub_epi8(
            _mm512_and_si512(_mm512_srli_epi16(load(codes), 4), _mm512_set1_epi8(15)),
            _mm512_set1_epi8(kSymmetricZeroPoint));
        store(values, even);
        store(values + 64, odd);
        bytes = _mm512_add_epi8(bytes, _mm512_add_epi8(even, odd));
      });
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
    }
    if (sums) store(sums, _mm512_add_epi32(load(sums), sum));
  }

  // The sums of products of a block of k. Bytes in L1 are weights, and `odd` is not used; codes in memory are unpacked in
  // registers, and `odd` has 16 times the sums of the odd steps.
  template <int kRows, int kTiles>
  struct Sums {
    __m512i even[kRows][kTiles], odd[kRows][kTiles];
    __m512i column_16[kTiles];  // 16 times the sums of the weights of each column

    LAMINA_INLINE void clear() {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        column_16[t] = _mm512_setzero_si512();
        unroll<kRows>([&](auto r)
                          LAMINA_INLINE { even[r][t] = odd[r][t] = _mm512_setzero_si512(); });
      });
    }
  };

  // Adds the products of a span. even_bytes += the weights of its even steps, which fit a byte for kSpansOfBytes spans.
  static constexpr int64_t kSpansOfBytes = 128 / kSymmetricZeroPoint / 2;
  template <int kRows, int kTiles, bool kAreCodes>
  LAMINA_INLINE static void add_span(const int8_t* a, const uint8_t* w, int64_t w_stride,
                                     Sums<kRows, kTiles>& sums, __m512i (&even_bytes)[kTiles]) {
    unroll<2>([&](auto parity) LAMINA_INLINE {
      __m512i pick[kTiles];
      unroll<kTiles>([&](auto t) LAMINA_INLINE { pick[t] = pick_of<parity>(w + t * w_stride); });
      unroll<2>([&](auto pair) LAMINA_INLINE {
        constexpr int kStep = 2 * pair + parity;
        __m512i weights[kTiles];
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          if constexpr (pair != 0) pick[t] = _mm512_srli_epi32(pick[t], 4);
          const uint8_t* const values = w + t * w_stride + sparse24_rows::kIndexBytes;
          if constexpr (!kAreCodes) {
            weights[t] = load(values + kStep * kStepBytes);
          } else if constexpr (parity == 0) {
            weights[t] = even_weights(values + pair * kStepBytes);
            even_bytes[t] = _mm512_add_epi8(even_bytes[t], weights[t]);
          } else {
            weights[t] = odd_weights_16(values + pair * kStepBytes);
            sums.column_16[t] =
                _mm512_dpbusd_epi32(sums.column_16[t], _mm512_set1_epi8(1), weights[t]);
          }
        });
        auto& sum = kAreCodes && parity != 0 ? sums.odd : sums.even;
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

  // The columns of a GroupStep from `column` on, kTiles tiles of 16.
  template <int kRows, int kTiles, bool kAreCodes>
  LAMINA_INLINE static void multiply_tiles(const GroupStep& step, int column) {
    constexpr int kBytes = kAreCodes ? kCodeSpanBytes : kSpanBytes;
    const int8_t* a = step.a;
    const uint8_t* w = step.w + column / sparse24_rows::kTileN * step.w_stride;
    Sums<kRows, kTiles> sums;
    sums.clear();
    for (int64_t left = step.spans; left > 0; left -= kSpansOfBytes) {
      __m512i even_bytes[kTiles];
      unroll<kTiles>([&](auto t) LAMINA_INLINE { even_bytes[t] = _mm512_setzero_si512(); });
      for (int64_t i = std::min(left, kSpansOfBytes); i > 0; --i) {
        if constexpr (kAreCodes)
          unroll<kTiles>([&](auto t) LAMINA_INLINE { prefetch_codes(w + t * step.w_stride); });
        add_span<kRows, kTiles, kAreCodes>(a, w, step.w_stride, sums, even_bytes);
        w += kBytes;
        a += kSteps * kRows * kStepK;
      }
      if constexpr (kAreCodes)
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          sums.column_16[t] =
              _mm512_dpbusd_epi32(sums.column_16[t], _mm512_set1_epi8(16), even_bytes[t]);
        });
    }
    finish<kRows, kTiles, kAreCodes>(step, column, sums);
  }

  // acc (+)= the sums, or y += the scaled sums where the group ends.
  template <int kRows, int kTiles, bool kAreCodes>
  LAMINA_INLINE static void finish(const GroupStep& step, int column, Sums<kRows, kTiles>& sums) {
    int32_t* const acc = step.acc + column;
    const auto each = [&](const auto& body) LAMINA_INLINE {
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        unroll<kTiles>([&](auto t) LAMINA_INLINE { body(r, t, acc + r * kTileN + t * 16); });
      });
    };
    if constexpr (kAreCodes)
      each([&](auto r, auto t, int32_t*) LAMINA_INLINE {
        sums.even[r][t] =
            _mm512_add_epi32(sums.even[r][t], shift_right_signed<4>(sums.odd[r][t]));
      });
    if (step.accumulate)
      each([&](auto r, auto t, const int32_t* at) LAMINA_INLINE {
        sums.even[r][t] = _mm512_add_epi32(sums.even[r][t], load(at));
      });
    __m512i column_sum[kTiles];  // of the group so far
    if (kAreCodes || step.ends)
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        column_sum[t] = load(step.sums + column + t * 16);
        if constexpr (kAreCodes)
          column_sum[t] =
              _mm512_add_epi32(column_sum[t], shift_right_signed<4>(sums.column_16[t]));
      });
    if (step.ends) return finish_group<kRows, kTiles>(step, column, column_sum, sums);
    each([&](auto r, auto t, int32_t* at) LAMINA_INLINE { store(at, sums.even[r][t]); });
    if constexpr (kAreCodes)
      unroll<kTiles>([&](auto t)
                         LAMINA_INLINE { store(step.sums + column + t * 16, column_sum[t]); });
  }

  // y += the scaled sums of a group.
  template <int kRows, int kTiles>
  LAMINA_INLINE static void finish_group(const GroupStep& step, int column,
                                         const __m512i (&column_sum)[kTiles],
                                         const Sums<kRows, kTiles>& sums) {
    unroll<kTiles>([&](auto t) LAMINA_INLINE {
      const __m512 scale = _mm512_loadu_ps(step.scale + column + t * 16);
      const auto add = [&](auto r, __m512i more) LAMINA_INLINE {
        float* const y = step.y + r * kTileN + column + t * 16;
        const __m512 x = to_floats(_mm512_sub_epi32(sums.even[r][t], more));
        _mm512_storeu_ps(y, _mm512_fmadd_ps(x, scale, _mm512_loadu_ps(y)));
      };
      if (step.has_zero) {
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          add(r, _mm512_mullo_epi32(column_sum[t], _mm512_set1_epi32(step.zero[r])));
        });
      } else {
        static_assert(kOffset == 1 << 7);
        const __m512i offsets = _mm512_slli_epi32(column_sum[t], 7);
        unroll<kRows>([&](auto r) LAMINA_INLINE { add(r, offsets); });
      }
    });
  }

  template <int kRows, bool kAreCodes>
  static void multiply_rows(const GroupStep& step) {
    constexpr int kTiles = kAreCodes && kRows > 4 ? 1 : 2;
    int tile = 0;
    for (; tile + kTiles <= step.tiles_n; tile += kTiles)
      multiply_tiles<kRows, kTiles, kAreCodes>(step, tile * sparse24_rows::kTileN);
    if (kTiles > 1 && tile < step.tiles_n)
      multiply_tiles<kRows, 1, kAreCodes>(step, tile * sparse24_rows::kTileN);
  }

  template <bool kAreCodes>
  static void multiply(const GroupStep& step) {
    const auto product =
        std::array{multiply_rows<1, kAreCodes>, multiply_rows<2, kAreCodes>,
                   multiply_rows<3, kAreCodes>, multiply_rows<4, kAreCodes>,
                   multiply_rows<5, kAreCodes>, multiply_rows<6, kAreCodes>,
                   multiply_rows<7, kAreCodes>, multiply_rows<8, kAreCodes>};
    product[static_cast<size_t>(step.rows - 1)](step);
  }

  static void add_group(const GroupStep& step) {
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

CpuKernel matmul_sparse24_int4_int8_avx512_vnni(int64_t min_m) {
  return make_int4_kernel<Tile>("matmul_sparse24_int4_int8_avx512_vnni", Isa::kAvx512Vnni, min_m,
                                150);
}

}  // namespace lamina::matmul_sparse24
