// gemm_int8 / avx2: exact for every int8 value. Both operands are widened to int16 and vpmaddwd adds
// pairs of products in int32; nothing can saturate, unlike vpmaddubsw.
//
// Ports  a widened weight vector (4 columns x 4 k) costs one vpmovsxbw and serves kTileM rows; a row costs
//        one broadcast load, and per vector one vpmaddwd and one vpaddd: 32 MACs in 4 vector uops. The sign
//        trick (vpabsb, vpsignb, vpmaddubsw, vpmaddwd, vpaddd) needs as many and fails for w = -128.
// Tile   6 rows x 8 columns = 12 accumulators + 2 weights + 1 broadcast of 16 registers. Up to 3 rows take
//        all 16 columns at once, so that each weight line is read once.
#include <immintrin.h>

#include "base/unroll.h"
#include "ops/gemm_int8/cpu/body.h"

namespace lamina::gemm_int8 {
namespace {

struct Tile {
  using Packed = int16_t;  // [group of 4 k][row][4]
  using Session = NoSession;
  static constexpr int kTileM = 6;
  static constexpr int kTileN = int8_tile::kTileN;
  static constexpr int kOffset = 0;
  static constexpr int kRowBytes = int8_tile::kTileN * int8_tile::kGroupK;
  static constexpr int packed_rows(int rows) { return rows; }

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, Packed* packed) {
    const int64_t padded = int8_tile::tiles_k(k) * int8_tile::kTileK;
    for (int r = 0; r < rows; ++r) {
      const int8_t* const row = a + r * a_stride;
      Packed* const out = packed + r * int8_tile::kGroupK;
      for (int64_t p = 0; p < padded; p += 16) {
        alignas(16) int8_t tail[16] = {};
        const bool whole = p + 16 <= k;
        if (!whole && p < k) std::memcpy(tail, row + p, static_cast<size_t>(k - p));
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(whole ? row + p : tail));
        const __m256i words = _mm256_cvtepi8_epi16(bytes);
        const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
        Packed* const group = out + p * rows;
        _mm_storel_epi64(reinterpret_cast<__m128i*>(group), low);
        _mm_storeh_pd(reinterpret_cast<double*>(group + 4 * rows), _mm_castsi128_pd(low));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(group + 8 * rows), high);
        _mm_storeh_pd(reinterpret_cast<double*>(group + 12 * rows), _mm_castsi128_pd(high));
      }
    }
  }

  // kRows x (4 * kVectors) outputs. A lane pair of an accumulator holds one column's sums over k % 4 in
  // {0, 1} and in {2, 3}; they are added at the end.
  template <int kRows, int kVectors>
  static void multiply_fixed(const Packed* a, const int8_t* w, int64_t groups, int32_t* acc, bool accumulate) {
    __m256i sum[kRows][kVectors];
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<kVectors>([&](auto v) LAMINA_INLINE { sum[i][v] = _mm256_setzero_si256(); });
    });
    for (int64_t g = 0; g < groups; ++g, w += kRowBytes, a += kRows * int8_tile::kGroupK) {
      if constexpr (kVectors == 4) _mm_prefetch(reinterpret_cast<const char*>(w) + 1024, _MM_HINT_T0);
      __m256i weight[kVectors];
      unroll<kVectors>([&](auto v) LAMINA_INLINE {
        weight[v] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w) + v));
      });
      unroll<kRows>([&](auto i) LAMINA_INLINE {
        long long group;
        std::memcpy(&group, a + i * int8_tile::kGroupK, sizeof group);
        const __m256i row = _mm256_set1_epi64x(group);
        unroll<kVectors>([&](auto v) LAMINA_INLINE {
          sum[i][v] = in_order(_mm256_add_epi32(sum[i][v], _mm256_madd_epi16(row, weight[v])));
        });
      });
    }
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<kVectors / 2>([&](auto pair) LAMINA_INLINE {
        __m256i* const out = reinterpret_cast<__m256i*>(acc + i * kTileN) + pair;
        // vphaddd adds within 128-bit lanes: columns 0 1 4 5 | 2 3 6 7.
        const __m256i halves = _mm256_hadd_epi32(sum[i][2 * pair], sum[i][2 * pair + 1]);
        const __m256i total = _mm256_permute4x64_epi64(halves, 0xd8);
        _mm256_store_si256(out, accumulate ? _mm256_add_epi32(_mm256_load_si256(out), total) : total);
      });
    });
  }

  template <int kRows>
  static void multiply_rows(const Packed* a, const int8_t* w, int64_t groups, int32_t* acc, bool accumulate) {
    if constexpr (kRows <= 3) {
      multiply_fixed<kRows, 4>(a, w, groups, acc, accumulate);
    } else {
      multiply_fixed<kRows, 2>(a, w, groups, acc, accumulate);
      multiply_fixed<kRows, 2>(a, w + 32, groups, acc + 8, accumulate);
    }
  }

  static void multiply(int rows, const Packed* a, const int8_t* w, int64_t, int, int64_t tiles_k, int32_t* acc,
                       bool accumulate) {
    const int64_t groups = tiles_k * int8_tile::kGroups;
    switch (rows) {
      case 1: return multiply_rows<1>(a, w, groups, acc, accumulate);
      case 2: return multiply_rows<2>(a, w, groups, acc, accumulate);
      case 3: return multiply_rows<3>(a, w, groups, acc, accumulate);
      case 4: return multiply_rows<4>(a, w, groups, acc, accumulate);
      case 5: return multiply_rows<5>(a, w, groups, acc, accumulate);
      default: return multiply_rows<6>(a, w, groups, acc, accumulate);
    }
  }
};

}  // namespace

CpuKernel gemm_int8_avx2(int64_t min_m) { return make_kernel<Tile>("gemm_int8_avx2", Isa::kAvx2, min_m, 22); }

}  // namespace lamina::gemm_int8
