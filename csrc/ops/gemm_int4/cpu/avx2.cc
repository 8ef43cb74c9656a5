// gemm_int4 / avx2: f32 fused multiply-adds.
//
// Ports  16 MACs a cycle. Per k of a tile 12 vfmadd231ps in 6 cycles, over 2 weight and 6 broadcast loads in 4. A weight
//        costs half a vector uop to dequantize, once for all rows of a panel.
// Tile   6 rows x 16 columns = 12 accumulators + 2 weights + row of 16 registers
#include <immintrin.h>

#include <array>

#include "ops/gemm_int4/cpu/body.h"

namespace lamina::gemm_int4 {
namespace {

struct Tile {
  static constexpr int kTileM = 6, kTileN = int4::kTileN, kBlockK = 256;
  static constexpr int kVectors = 2;

  LAMINA_INLINE static void dequantize(const uint8_t* line, const float* scale,
                                       const float* minus_zero, float* to) {
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line) + v);
      const __m256 s = _mm256_load_ps(scale + v * 8), z = _mm256_load_ps(minus_zero + v * 8);
      unroll<kLineK>([&](auto k) LAMINA_INLINE {
        const __m256i codes = _mm256_and_si256(_mm256_srli_epi32(packed, k % 4 * 8 + k / 4 * 4),
                                               _mm256_set1_epi32(15));
        _mm256_store_ps(to + k * kTileN + v * 8, _mm256_fmadd_ps(_mm256_cvtepi32_ps(codes), s, z));
      });
    });
  }

  template <int kRows>
  static void multiply_rows(const Step& step) {
    const float *a = step.a, *w = step.w;
    __m256 sum[kRows][kVectors];
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kVectors>(
          [&](auto v) LAMINA_INLINE { sum[r][v] = _mm256_loadu_ps(step.y + r * kTileN + v * 8); });
    });
    for (int64_t p = 0; p < step.k; ++p, a += kRows, w += kTileN) {
      const __m256 weight[kVectors] = {_mm256_load_ps(w), _mm256_load_ps(w + 8)};
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        const __m256 row = _mm256_broadcast_ss(a + r);
        unroll<kVectors>([&](auto v) LAMINA_INLINE {
          sum[r][v] = in_order(_mm256_fmadd_ps(row, weight[v], sum[r][v]));
        });
      });
    }
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kVectors>(
          [&](auto v) LAMINA_INLINE { _mm256_storeu_ps(step.y + r * kTileN + v * 8, sum[r][v]); });
    });
  }

  static void multiply(const Step& step) {
    const auto multiply = std::array{multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                     multiply_rows<4>, multiply_rows<5>, multiply_rows<6>};
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }
};

}  // namespace

CpuKernel gemm_int4_avx2(int64_t min_m) {
  return make_kernel<Tile>("gemm_int4_avx2", Isa::kAvx2, min_m, 15);
}

}  // namespace lamina::gemm_int4
