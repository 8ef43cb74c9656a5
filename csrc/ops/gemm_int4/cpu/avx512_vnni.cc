// gemm_int4 / avx512_vnni: f32 fused multiply-adds.
//
// Ports  32 MACs a cycle. One k of a tile takes 24 vfmadd231ps, 12 cycles, which hide 4 weight and 6 broadcast loads,
//        5 cycles. To dequantize a weight costs 3/16 of a vector uop, once for all rows of a panel.
// Tile   6 rows x 64 columns = 24 accumulators + 4 weights + 1 row of 32 registers
#include <array>

#include "base/avx512.h"
#include "ops/gemm_int4/cpu/dense.h"

namespace lamina::gemm_int4 {
namespace {

struct Tile {
  static constexpr int kTileM = 6, kFewRows = 4, kTileN = 64, kBlockK = 64;
  static constexpr int kTiles = kTileN / int4::kTileN;

  // The weights of 16 columns for input feature k of a line.
  LAMINA_INLINE static __m512 weights(__m512i line, int k, __m512 scale, __m512 minus_zero) {
    const __m512 floats = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    // vpermps reads only the low four bits of each lane, which are the code.
    const __m512i codes = _mm512_srli_epi32(line, k % 4 * 8 + k / 4 * 4);
    return _mm512_fmadd_ps(_mm512_permutexvar_ps(codes, floats), scale, minus_zero);
  }

  LAMINA_INLINE static void dequantize(const uint8_t* tile, int64_t at, const float* scale,
                                       const float* minus_zero, float* to) {
    const __m512i line = _mm512_loadu_si512(line_at(tile, at));
    const __m512 s = _mm512_load_ps(scale), z = _mm512_load_ps(minus_zero);
    unroll<kLineK>([&](auto k) LAMINA_INLINE {
      _mm512_store_ps(to + k * int4::kTileN, weights(line, k, s, z));
    });
  }

  template <int kRows, int kTiles>
  static void multiply_fixed(const Step& step) {
    const float *a = step.a, *w = step.w;
    __m512 sum[kRows][kTiles];
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        sum[r][t] = _mm512_loadu_ps(step.y + r * kTileN + t * int4::kTileN);
      });
    });
    for (int64_t p = 0; p < step.k; ++p, a += kRows, w += int4::kTileN) {
      __m512 weight[kTiles];
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        weight[t] = _mm512_load_ps(w + t * (kBlockK * int4::kTileN));
      });
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        const __m512 row = _mm512_set1_ps(a[r]);
        unroll<kTiles>(
            [&](auto t) LAMINA_INLINE { sum[r][t] = _mm512_fmadd_ps(row, weight[t], sum[r][t]); });
      });
    }
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        _mm512_storeu_ps(step.y + r * kTileN + t * int4::kTileN, sum[r][t]);
      });
    });
  }

  template <int kTiles>
  static void multiply_tiles(const Step& step) {
    const auto multiply =
        std::array{multiply_fixed<1, kTiles>, multiply_fixed<2, kTiles>, multiply_fixed<3, kTiles>,
                   multiply_fixed<4, kTiles>, multiply_fixed<5, kTiles>, multiply_fixed<6, kTiles>};
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }

  static void multiply(const Step& step) {
    if (step.tiles_n == kTiles) return multiply_tiles<kTiles>(step);
    Step one = step;
    for (int t = 0; t < step.tiles_n; ++t) {
      multiply_tiles<1>(one);
      one.w += kBlockK * int4::kTileN;
      one.y += int4::kTileN;
    }
  }

  template <int kRows>
  static void multiply_lines_of(const Lines& lines) {
    const float* a = lines.a;
    const uint8_t* w = line_at(lines.w, lines.k);
    __m512 sum[kRows][kTiles], scale[kTiles], minus_zero[kTiles];
    unroll<kTiles>([&](auto t) LAMINA_INLINE {
      scale[t] = _mm512_load_ps(lines.scale + t * int4::kTileN);
      minus_zero[t] = _mm512_load_ps(lines.minus_zero + t * int4::kTileN);
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        sum[r][t] = _mm512_loadu_ps(lines.y + r * kTileN + t * int4::kTileN);
      });
    });
    for (int64_t i = 0; i < lines.count; ++i, w += kLineBytes) {
      const int64_t ahead = lines.ahead(w);
      __m512i line[kTiles];
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        __builtin_prefetch(w + t * lines.w_stride + ahead, 0, 2);
        line[t] = _mm512_loadu_si512(w + t * lines.w_stride);
      });
      unroll<kLineK>([&](auto k) LAMINA_INLINE {
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          const __m512 weight = weights(line[t], k, scale[t], minus_zero[t]);
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            sum[r][t] = _mm512_fmadd_ps(_mm512_set1_ps(a[r]), weight, sum[r][t]);
          });
        });
        a += kRows;
      });
    }
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        _mm512_storeu_ps(lines.y + r * kTileN + t * int4::kTileN, sum[r][t]);
      });
    });
  }

  static void multiply_lines(const Lines& lines) {
    const auto multiply = std::array{multiply_lines_of<1>, multiply_lines_of<2>,
                                     multiply_lines_of<3>, multiply_lines_of<4>};
    multiply[static_cast<size_t>(lines.rows - 1)](lines);
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int4_avx512_vnni =
    make_kernel<Tile>("gemm_int4_avx512_vnni", Isa::kAvx512Vnni, 30);

}  // namespace lamina::gemm_int4
