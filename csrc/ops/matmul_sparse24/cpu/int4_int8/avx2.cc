// matmul_sparse24_int4_int8 / avx2: vpshufb picks the activations of the kept codes, and vpmaddubsw multiplies them, as
// a + 128, by code - 8. A pair is at most 255 * 8 * 2, so int16 holds the sum of the eight pairs of 64 input features,
// and only that sum is widened to int32 by vpmaddwd. 128 * the weights of a column are subtracted when a group ends.
//
// Count  A row of 64 dense weights, 32 kept ones, takes vpshufb, vpmaddubsw and vpaddw; 512 weights take vpmaddwd and
//        vpaddd besides: 26 uops, where the dense kernel takes 36. 256 weights take 7 uops for the indices of all rows:
//        8 rows take 8 * 26 + 14 for 512 weights, 0.77 of the dense kernel. The scale of a
//        group adds vpsubd, vcvtdq2ps and a fused multiply-add to a row, in the dense kernel the last two.
//        A single panel unpacks the codes in registers: 256 weights take 10 uops more for the codes and 5 for the sums
//        of the columns. One row takes 35 and four take 74, the dense kernel 30 and 82, for 128 instead of 96 bytes.
// Tile   8 rows x 8 columns = 8 sums + indices, weights, row, product and constants of 16 registers; up to 4 rows x 16
//        columns, which share each load of a row
#include <immintrin.h>

#include <array>

#include "base/unroll.h"
#include "gemm/cpu/pack_bytes.h"
#include "ops/matmul_sparse24/cpu/int8/int4_nest.h"
#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

constexpr int kStepK = sparse24_rows::kStepK, kSteps = sparse24_rows::kSteps;

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

void store(void* at, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(at), v); }

// Four sums of bytes become one of int32.
__m256i add_fours(__m256i bytes) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// Codes of an even or an odd step as weights.
LAMINA_INLINE inline __m256i even_weights(const uint8_t* codes) {
  return _mm256_sub_epi8(_mm256_and_si256(load(codes), _mm256_set1_epi8(15)),
                         _mm256_set1_epi8(kSymmetricZeroPoint));
}
LAMINA_INLINE inline __m256i odd_weights(const uint8_t* codes) {
  return _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(load(codes), 4), _mm256_set1_epi8(15)),
                         _mm256_set1_epi8(kSymmetricZeroPoint));
}

// Weights as bytes in L1. weights(32 v) are those of columns 8 v to 8 v + 7.
struct ByteSpans {
  static constexpr bool kAddsSums = false;
  static constexpr int kBytes = kSpanBytes;
  const uint8_t* at;

  template <int kStep>
  LAMINA_INLINE __m256i weights(int column_bytes) const {
    return load(at + sparse24_rows::kIndexBytes + kStep * kStepBytes + column_bytes);
  }
};

// The same as codes in memory.
struct CodeSpans {
  static constexpr bool kAddsSums = true;
  static constexpr int kBytes = kCodeSpanBytes;
  const uint8_t* at;

  template <int kStep>
  LAMINA_INLINE __m256i weights(int column_bytes) const {
    const uint8_t* const codes =
        at + sparse24_rows::kIndexBytes + kStep / 2 * kStepBytes + column_bytes;
    return kStep % 2 == 0 ? even_weights(codes) : odd_weights(codes);
  }
};

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 8, kRowStep = 1;
  static constexpr int kTileN = 4 * sparse24_rows::kTileN;
  static constexpr int kOffset = 128;
  static constexpr bool kScales = true;
  static constexpr int kCodesK = sparse24_rows::kTileK;
  static constexpr int tiles_at_once(int64_t) { return kTileN / sparse24_rows::kTileN; }
  static constexpr int packed_bytes(int rows) {
    return rows * sparse24_rows::kTileK;
  }  // [step of 8 k][row][8]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_groups(a, a_stride, rows, k, uint64_t{0x8080808080808080u}, packed);
  }

  static void add_sums(const int8_t* values, int32_t* sums) {
    for (int v = 0; v < 2; ++v)
      store(sums + v * 8, _mm256_add_epi32(load(sums + v * 8), add_fours(load(values + v * 32))));
  }

  static void expand_spans(const uint8_t* from, int64_t spans, int8_t* to, int32_t* sums) {
    for (; spans > 0; --spans, from += kCodeSpanBytes, to += kSpanBytes) {
      prefetch_codes(from);
      for (int v = 0; v < 2; ++v) {
        store(to + v * 32, load(from + v * 32));
        __m256i sum = _mm256_setzero_si256();
        for (int half = 0; half < 2; ++half) {
          const uint8_t* const codes = from + (1 + half) * 64 + v * 32;
          int8_t* const values = to + (1 + 2 * half) * 64 + v * 32;
          const __m256i even = even_weights(codes), odd = odd_weights(codes);
          store(values, even);
          store(values + 64, odd);
          sum = _mm256_add_epi8(sum, _mm256_add_epi8(even, odd));
        }
        if (sums) store(sums + v * 8, _mm256_add_epi32(load(sums + v * 8), add_fours(sum)));
      }
    }
  }

  // half += the products of kRows rows of a tile of k with vectors of 8 columns; column_sum += the sums of the weights.
  template <int kRows, int kVectors, class Spans>
  LAMINA_INLINE static void add_tile(const int8_t* a, Spans spans, __m256i (&half)[kRows][kVectors],
                                     __m256i (&column_sum)[kVectors]) {
    __m256i bytes[kVectors];
    unroll<kVectors>([&](auto v) LAMINA_INLINE { bytes[v] = _mm256_setzero_si256(); });
    for (int span = 0; span < sparse24_rows::kSpans; ++span, spans.at += Spans::kBytes) {
      unroll<2>([&](auto parity) LAMINA_INLINE {
        // The indices of two steps, one in each half of a byte. Values 2 and 3 belong to the second group of the step.
        // vpshufb ignores bits 4 to 6, and the 8 activations are there twice, so bit 3 does not matter either.
        __m256i pick[kVectors];
        unroll<kVectors>([&](auto v) LAMINA_INLINE {
          __m256i index = load(spans.at + v * 32);
          if constexpr (parity != 0) index = _mm256_srli_epi32(index, 2);
          pick[v] = _mm256_or_si256(_mm256_and_si256(index, _mm256_set1_epi8(0x33)),
                                    _mm256_set1_epi32(0x44440000));
        });
        unroll<2>([&](auto pair) LAMINA_INLINE {
          constexpr int kStep = 2 * pair + parity;
          __m256i weights[kVectors];
          unroll<kVectors>([&](auto v) LAMINA_INLINE {
            if constexpr (pair != 0) pick[v] = _mm256_srli_epi32(pick[v], 4);
            weights[v] = in_order(spans.template weights<kStep>(v * 32));
            if constexpr (Spans::kAddsSums)
              bytes[v] = in_order(_mm256_add_epi8(bytes[v], weights[v]));
          });
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            long long eight;
            std::memcpy(&eight, a + (kStep * kRows + r) * kStepK, sizeof eight);
            const __m256i row = _mm256_set1_epi64x(eight);
            unroll<kVectors>([&](auto v) LAMINA_INLINE {
              const __m256i picked = _mm256_shuffle_epi8(row, pick[v]);
              half[r][v] =
                  in_order(_mm256_add_epi16(half[r][v], _mm256_maddubs_epi16(picked, weights[v])));
            });
          });
        });
      });
      a += kSteps * kRows * kStepK;
    }
    if constexpr (Spans::kAddsSums)
      unroll<kVectors>([&](auto v) LAMINA_INLINE {
        column_sum[v] = _mm256_add_epi32(column_sum[v], add_fours(bytes[v]));
      });
  }

  // The columns of a GroupStep from `column` on, kVectors vectors of 8.
  template <int kRows, int kVectors, class Spans>
  LAMINA_INLINE static void multiply_vectors(const GroupStep& step, Spans spans, int column) {
    constexpr int kBytes = sparse24_rows::kSpans * Spans::kBytes;
    int32_t* const acc = step.acc + column;
    __m256i column_sum[kVectors];
    if constexpr (Spans::kAddsSums)
      unroll<kVectors>([&](auto v)
                           LAMINA_INLINE { column_sum[v] = load(step.sums + column + v * 8); });
    const int64_t tiles_k = ceil_div(step.spans, int64_t{sparse24_rows::kSpans});
    for (int64_t t = 0; t < tiles_k; ++t, spans.at += kBytes) {
      if constexpr (Spans::kAddsSums)
        for (int span = 0; span < sparse24_rows::kSpans; ++span)
          prefetch_codes(spans.at + span * Spans::kBytes);
      __m256i half[kRows][kVectors];
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        unroll<kVectors>([&](auto v) LAMINA_INLINE { half[r][v] = _mm256_setzero_si256(); });
      });
      add_tile<kRows, kVectors>(step.a + t * packed_bytes(kRows), spans, half, column_sum);
      const bool is_done = t + 1 == tiles_k && step.ends;
      if constexpr (!Spans::kAddsSums)
        if (is_done)
          unroll<kVectors>([&](auto v)
                               LAMINA_INLINE { column_sum[v] = load(step.sums + column + v * 8); });
      const auto finish = [&](auto is_new) LAMINA_INLINE {
        const auto sum_of = [&](auto r, auto v) LAMINA_INLINE {
          const __m256i sum = _mm256_madd_epi16(half[r][v], _mm256_set1_epi16(1));
          if constexpr (is_new) return sum;
          return _mm256_add_epi32(sum, load(acc + r * kTileN + v * 8));
        };
        if (is_done) return finish_group<kRows, kVectors>(step, column, column_sum, sum_of);
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          unroll<kVectors>([&](auto v)
                               LAMINA_INLINE { store(acc + r * kTileN + v * 8, sum_of(r, v)); });
        });
      };
      t == 0 && !step.accumulate ? finish(std::true_type{}) : finish(std::false_type{});
    }
    if constexpr (Spans::kAddsSums)
      if (!step.ends)
        unroll<kVectors>([&](auto v)
                             LAMINA_INLINE { store(step.sums + column + v * 8, column_sum[v]); });
  }

  // y += the scaled sums of a group.
  template <int kRows, int kVectors>
  LAMINA_INLINE static void finish_group(const GroupStep& step, int column,
                                         const __m256i (&column_sum)[kVectors],
                                         const auto& sum_of) {
    const float* const scale = step.scale + column;
    float* const y = step.y + column;
    const auto add = [&](auto r, auto v, __m256i more) LAMINA_INLINE {
      float* const at = y + r * kTileN + v * 8;
      const __m256 x = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum_of(r, v), more));
      _mm256_storeu_ps(at, _mm256_fmadd_ps(x, _mm256_loadu_ps(scale + v * 8), _mm256_loadu_ps(at)));
    };
    if (step.has_zero) {
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        const __m256i zero = _mm256_set1_epi32(step.zero[r]);
        unroll<kVectors>([&](auto v)
                             LAMINA_INLINE { add(r, v, _mm256_mullo_epi32(column_sum[v], zero)); });
      });
    } else {
      static_assert(kOffset == 1 << 7);
      __m256i more[kVectors];
      unroll<kVectors>([&](auto v)
                           LAMINA_INLINE { more[v] = _mm256_slli_epi32(column_sum[v], 7); });
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        unroll<kVectors>([&](auto v) LAMINA_INLINE { add(r, v, more[v]); });
      });
    }
  }

  template <int kRows, class Spans>
  static void multiply_rows(const GroupStep& step) {
    constexpr int kVectors = kRows <= 4 ? 2 : 1;
    for (int tile = 0; tile < step.tiles_n; ++tile)
      for (int v = 0; v < 2; v += kVectors)
        multiply_vectors<kRows, kVectors>(step, Spans{step.w + tile * step.w_stride + v * 32},
                                          tile * sparse24_rows::kTileN + v * 8);
  }

  template <class Spans>
  static void multiply(const GroupStep& step) {
    const auto product =
        std::array{multiply_rows<1, Spans>, multiply_rows<2, Spans>, multiply_rows<3, Spans>,
                   multiply_rows<4, Spans>, multiply_rows<5, Spans>, multiply_rows<6, Spans>,
                   multiply_rows<7, Spans>, multiply_rows<8, Spans>};
    product[static_cast<size_t>(step.rows - 1)](step);
  }

  static void add_groups(GroupStep step) {
    if (!step.are_codes) return multiply<ByteSpans>(step);
    for (; step.groups > 0; --step.groups) {
      multiply<CodeSpans>(step);
      step.a += step.a_stride;
      step.w += step.spans * kCodeSpanBytes;
      step.scale += step.scale_stride;
    }
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
    multiply<ByteSpans>(step);
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int4_int8_avx2 =
    make_int4_kernel<Tile>("matmul_sparse24_int4_int8_avx2", Isa::kAvx2, 50);

}  // namespace lamina::matmul_sparse24
