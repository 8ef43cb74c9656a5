// gemm_int4 / avx2: f32 fused multiply-adds.
//
// Ports  16 MACs a cycle. One k of a tile takes 12 vfmadd231ps, 6 cycles, which hide 2 weight and 6 broadcast loads,
//        4 cycles. To dequantize a weight costs half a vector uop, once for all rows of a panel.
// Tile   6 rows x 16 columns = 12 accumulators + 2 weights + 1 row of 16 registers; 256 k of its weights are 16 KiB of L1
#include <immintrin.h>

#include <array>

#include "ops/gemm_int4/cpu/dense.h"

namespace lamina::gemm_int4 {
namespace {

struct Tile {
  static constexpr int kTileM = 6, kFewRows = 3, kTileN = 64, kBlockK = 256;
  static constexpr int kVectors = 2;

  // Calls body(k, weights of vector v of the line) for each k of the line.
  LAMINA_INLINE static void for_weights(const uint8_t* line, int v, const float* scale,
                                        const float* minus_zero, const auto& body) {
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line) + v);
    const __m256 s = _mm256_load_ps(scale + v * 8), z = _mm256_load_ps(minus_zero + v * 8);
    unroll<kLineK>([&](auto k) LAMINA_INLINE {
      const __m256i codes =
          _mm256_and_si256(_mm256_srli_epi32(packed, k % 4 * 8 + k / 4 * 4), _mm256_set1_epi32(15));
      body(k, _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), s, z));
    });
  }

  LAMINA_INLINE static void dequantize(const uint8_t* tile, int64_t at, const float* scale,
                                       const float* minus_zero, float* to) {
    const uint8_t* const line = line_at(tile, at);
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      for_weights(line, v, scale, minus_zero, [&](auto k, __m256 weights) LAMINA_INLINE {
        _mm256_store_ps(to + k * int4::kTileN + v * 8, weights);
      });
    });
  }

  // A few rows take more tiles at once, because each addition waits four cycles for the one before it.
  static constexpr int tiles_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

  template <int kRows, int kTiles>
  LAMINA_NOINLINE static void multiply_tiles(const float* a, const float* w, int64_t k, float* y) {
    __m256 sum[kRows][kTiles * kVectors];
    const auto column = [](int v) { return v / kVectors * int4::kTileN + v % kVectors * 8; };
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles * kVectors>(
          [&](auto v) LAMINA_INLINE { sum[r][v] = _mm256_loadu_ps(y + r * kTileN + column(v)); });
    });
    for (int64_t p = 0; p < k; ++p, a += kRows, w += int4::kTileN) {
      const auto weight = [&](int v) LAMINA_INLINE {
        return _mm256_load_ps(w + v / kVectors * (kBlockK * int4::kTileN) + v % kVectors * 8);
      };
      const auto add = [&](auto r, auto v, __m256 row, __m256 weights) LAMINA_INLINE {
        sum[r][v] = in_order(_mm256_fmadd_ps(row, weights, sum[r][v]));
      };
      if constexpr (kTiles == 1) {  // keep the smaller operand in registers
        const __m256 weights[kVectors] = {weight(0), weight(1)};
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          const __m256 row = _mm256_broadcast_ss(a + r);
          unroll<kVectors>([&](auto v) LAMINA_INLINE { add(r, v, row, weights[v]); });
        });
      } else {
        __m256 rows[kRows];
        unroll<kRows>([&](auto r) LAMINA_INLINE { rows[r] = _mm256_broadcast_ss(a + r); });
        unroll<kTiles * kVectors>([&](auto v) LAMINA_INLINE {
          const __m256 weights = weight(v);
          unroll<kRows>([&](auto r) LAMINA_INLINE { add(r, v, rows[r], weights); });
        });
      }
    }
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
      w += done * (kBlockK * int4::kTileN);
      y += done * int4::kTileN;
    }
  }

  static void multiply(const Step& step) {
    const auto multiply = std::array{multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                     multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }

  template <int kRows>
  static void multiply_lines_of(const Lines& lines) {
    constexpr int kAtOnce = kRows <= 2 ? 2 : 1;
    const auto column = [](int v) { return v / kVectors * int4::kTileN + v % kVectors * 8; };
    for (int tile = 0; tile < kTileN / int4::kTileN; tile += kAtOnce) {
      const int first = tile * int4::kTileN;
      const uint8_t* w = line_at(lines.w, lines.k) + tile * lines.w_stride;
      const float* a = lines.a;
      float* const y = lines.y + first;
      __m256 sum[kRows][kAtOnce * kVectors];
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        unroll<kAtOnce * kVectors>(
            [&](auto v) LAMINA_INLINE { sum[r][v] = _mm256_loadu_ps(y + r * kTileN + column(v)); });
      });
      for (int64_t i = 0; i < lines.count; ++i, w += kLineBytes, a += kLineK * kRows)
        unroll<kAtOnce * kVectors>([&](auto v) LAMINA_INLINE {
          const uint8_t* const line = w + v / kVectors * lines.w_stride;
          if constexpr (v % kVectors == 0)
            __builtin_prefetch(line + lines.ahead(w - tile * lines.w_stride), 0, 2);
          const int tile_first = first + v / kVectors * int4::kTileN;
          for_weights(line, v % kVectors, lines.scale + tile_first, lines.minus_zero + tile_first,
                      [&](auto k, __m256 weights) LAMINA_INLINE {
                        unroll<kRows>([&](auto r) LAMINA_INLINE {
                          const __m256 row = _mm256_broadcast_ss(a + k * kRows + r);
                          sum[r][v] = in_order(_mm256_fmadd_ps(row, weights, sum[r][v]));
                        });
                      });
        });
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

extern constinit const CpuKernel gemm_int4_avx2 =
    make_kernel<Tile>("gemm_int4_avx2", Isa::kAvx2, 15);

}  // namespace lamina::gemm_int4
