// matmul_sparse24, matmul_sparse24_int4 / avx2: vpermilps picks the activations of the kept weights of 8 columns, then f32
// fused multiply-adds.
//
// Count  One kept weight of 8 columns, 16 dense weights. Few rows: vpsrld, vpand, vcvtdq2ps and vfmadd make an int4
//        weight, vpsrld its index, and a row takes vpermilps and vfmadd: 5 + 2 m uops. The dense kernel: 8 + 2 m.
//        More rows: weights and indices come from L1, and a row takes vpermilps beside one vfmadd, where the dense kernel
//        has two vfmadd. Zen 4 starts 2.6 of such pairs' instructions a cycle and 2 vfmadd: 1.3 times dense.
// Tile   5 rows x 16 columns = 10 accumulators + 2 weights + 2 indices + row + picked of 16 registers
#include <immintrin.h>

#include <array>

#include "ops/matmul_sparse24/cpu/float/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

template <Value kValue>
struct Tile {
  static constexpr int kTileM = 5, kFewRows = 3, kTileN = 64, kBlockK = 64;
  static constexpr int kColumns = matmul_sparse24::kTileN, kVectors = 2;
  using LineOf = Line<bits_of(kValue)>;

  LAMINA_INLINE static __m256i load(const void* at) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(at));
  }

  // The activations of one group of k, in each half of a register.
  LAMINA_INLINE static __m256 group_of(const float* a) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(a));
  }

  // Kept weight i of the columns of vector v.
  LAMINA_INLINE static __m256 weights(const uint8_t* values, int i, int v, const float* scale,
                                      const float* minus_zero) {
    if constexpr (kValue == Value::kInt4) {
      const __m256i codes = _mm256_and_si256(
          _mm256_srli_epi32(load(values + v * 32), code_shift(i)), _mm256_set1_epi32(15));
      return _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), _mm256_load_ps(scale + v * 8),
                             _mm256_load_ps(minus_zero + v * 8));
    } else if constexpr (kValue == Value::kF32) {
      return _mm256_castsi256_ps(load(values + i * kColumns * 4 + v * 32));
    } else {
      const __m128i halves =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i * kColumns * 2 + v * 16));
      if constexpr (kValue == Value::kF16) return _mm256_cvtph_ps(halves);
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
  }

  LAMINA_INLINE static __m256i indices_of(const uint8_t* line, int v, int shift) {
    return _mm256_srl_epi32(load(line + v * 32), _mm_cvtsi32_si128(shift));
  }

  LAMINA_INLINE static void dequantize(const uint8_t* tile, int64_t at, const float* scale,
                                       const float* minus_zero, float* to) {
    const auto line = line_at<bits_of(kValue)>(tile, at);
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      const __m256i indices = indices_of(line.indices, v, line.shift);
      unroll<kKept>([&](auto i) LAMINA_INLINE {
        float* const weight = to + 2 * i * kColumns + v * 8;
        _mm256_store_ps(weight, weights(line.values, i, v, scale, minus_zero));
        _mm256_store_si256(reinterpret_cast<__m256i*>(weight + kColumns),
                           _mm256_srli_epi32(indices, index_shift(i)));
      });
    });
  }

  // A few rows take more tiles at once, because each addition waits four cycles for the one before it.
  static constexpr int tiles_at_once(int rows) { return rows == 1 ? 4 : rows <= 2 ? 2 : 1; }
  static constexpr int column(int v) { return v / kVectors * kColumns + v % kVectors * 8; }

  template <int kRows, int kTiles>
  LAMINA_NOINLINE static void multiply_tiles(const float* a, const float* w, int64_t k, float* y) {
    __m256 sum[kRows][kTiles * kVectors];
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles * kVectors>(
          [&](auto v) LAMINA_INLINE { sum[r][v] = _mm256_loadu_ps(y + r * kTileN + column(v)); });
    });
    for (int64_t p = 0; p < k; p += kGroupK, a += kRows * kGroupK, w += kGroupK * kColumns)
      unroll<2>([&](auto kept) LAMINA_INLINE {
        const float* const rows = load_again(a);
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          const float* const at = w + t * (kBlockK * kColumns) + kept * 2 * kColumns;
          const __m256 weight[] = {in_order(_mm256_load_ps(at)), in_order(_mm256_load_ps(at + 8))};
          const __m256i index[] = {in_order(load(at + kColumns)),
                                   in_order(load(at + kColumns + 8))};
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            const __m256 row = group_of(rows + r * kGroupK);
            unroll<kVectors>([&](auto v) LAMINA_INLINE {
              __m256& to = sum[r][t * kVectors + v];
              to = in_order(_mm256_fmadd_ps(_mm256_permutevar_ps(row, index[v]), weight[v], to));
            });
          });
        });
      });
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles * kVectors>(
          [&](auto v) LAMINA_INLINE { _mm256_storeu_ps(y + r * kTileN + column(v), sum[r][v]); });
    });
  }

  template <int kRows>
  static void multiply_rows(const Step& step) {
    constexpr int kTiles = tiles_at_once(kRows);
    const float* w = step.w;
    float* y = step.y;
    for (int left = step.tiles_n; left > 0;) {
      const bool is_whole = left >= kTiles;
      const auto multiply = is_whole ? multiply_tiles<kRows, kTiles> : multiply_tiles<kRows, 1>;
      multiply(step.a, w, step.k, y);
      const int done = is_whole ? kTiles : 1;
      left -= done;
      w += done * (kBlockK * kColumns);
      y += done * kColumns;
    }
  }

  static void multiply(const Step& step) {
    const auto multiply = std::array{multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                     multiply_rows<4>, multiply_rows<5>};
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }

  template <int kRows>
  static void multiply_lines_of(const Lines& lines) {
    constexpr int kAtOnce = kRows <= 2 ? 2 : 1;
    for (int tile = 0; tile < kTileN / kColumns; tile += kAtOnce) {
      const uint8_t* const w = lines.w + tile * lines.w_stride;
      const float *a = lines.a, *const scale = lines.scale + tile * kColumns,
                  *const minus_zero = lines.minus_zero + tile * kColumns;
      float* const y = lines.y + tile * kColumns;
      __m256 sum[kRows][kAtOnce * kVectors];
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        unroll<kAtOnce * kVectors>(
            [&](auto v) LAMINA_INLINE { sum[r][v] = _mm256_loadu_ps(y + r * kTileN + column(v)); });
      });
      for (int64_t i = 0; i < lines.count; ++i, a += kLineK * kRows) {
        const auto line = line_at<bits_of(kValue)>(w, lines.k + i * kLineK);
        unroll<kAtOnce * kVectors>([&](auto v) LAMINA_INLINE {
          const int64_t of_tile = v / kVectors * lines.w_stride;
          constexpr int kBytes = kKept * kColumns * bits_of(kValue) / 8;
          if constexpr (v % kVectors == 0)
            for (int ahead = 0; ahead < kBytes; ahead += 64)
              __builtin_prefetch(line.values + of_tile + kStreamAhead + ahead, 0, 2);
          const __m256i indices = indices_of(line.indices + of_tile, v % kVectors, line.shift);
          unroll<kKept>([&](auto kept) LAMINA_INLINE {
            const int first = v / kVectors * kColumns;
            const __m256 weight = weights(line.values + of_tile, kept, v % kVectors, scale + first,
                                          minus_zero + first);
            const __m256i index = _mm256_srli_epi32(indices, index_shift(kept));
            unroll<kRows>([&](auto r) LAMINA_INLINE {
              const __m256 row = group_of(a + (kept / 2 * kRows + r) * kGroupK);
              sum[r][v] =
                  in_order(_mm256_fmadd_ps(_mm256_permutevar_ps(row, index), weight, sum[r][v]));
            });
          });
        });
      }
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        unroll<kAtOnce * kVectors>(
            [&](auto v) LAMINA_INLINE { _mm256_storeu_ps(y + r * kTileN + column(v), sum[r][v]); });
      });
    }
  }

  static void multiply_lines(const Lines& lines) {
    const auto multiply =
        std::array{multiply_lines_of<1>, multiply_lines_of<2>, multiply_lines_of<3>};
    multiply[static_cast<size_t>(lines.rows - 1)](lines);
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int4_avx2 =
    make_int4_kernel<Tile>("matmul_sparse24_int4_avx2", Isa::kAvx2, 15);

extern constinit const CpuKernel matmul_sparse24_avx2 =
    make_float_kernel<Tile>("matmul_sparse24_avx2", Isa::kAvx2, 15);

}  // namespace lamina::matmul_sparse24
