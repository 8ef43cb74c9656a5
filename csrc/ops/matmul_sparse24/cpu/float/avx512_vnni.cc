// matmul_sparse24, matmul_sparse24_int4 / avx512_vnni: vpermilps picks the activations of the kept weights of 16 columns,
// then f32 fused multiply-adds.
//
// Count  One kept weight of 16 columns, 32 dense weights. Few rows: vpsrld, vpermps and vfmadd make an int4 weight,
//        vpsrld its index, and a row takes vpermilps and vfmadd: 4 + 2 m uops. The dense kernel: 6 + 2 m. Expanding
//        with zeros would be the dense kernel and more. One row, int4: 6 uops, 3 cycles, for 12 bytes.
//        More rows: weights and indices come from L1, and a row takes vpermilps on the shuffle port beside one vfmadd,
//        where the dense kernel has two vfmadd on the two ports.
// Tile   5 rows x 64 columns = 20 accumulators + 5 rows + weight, indices and picked of 32 registers. Where weights are
//        unpacked in registers, more than 2 rows take 32 columns at a time, because scales and zero points need
//        registers too
#include <array>

#include "base/avx512.h"
#include "ops/matmul_sparse24/cpu/float/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

template <Value kValue>
struct Tile {
  static constexpr int kTileM = 5, kFewRows = 5, kTileN = 64, kBlockK = 128;
  static constexpr int kTiles = kTileN / matmul_sparse24::kTileN;
  static constexpr int kColumns = matmul_sparse24::kTileN;
  using LineOf = Line<bits_of(kValue)>;

  // The activations of one group of k, in each quarter of a register.
  LAMINA_INLINE static __m512 group_of(const float* a) {
    return _mm512_broadcast_f32x4(_mm_loadu_ps(a));
  }

  // Kept weight i of 16 columns.
  LAMINA_INLINE static __m512 weights(const uint8_t* values, int i, __m512 scale,
                                      __m512 minus_zero) {
    if constexpr (kValue == Value::kInt4) {
      const __m512 floats = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      // vpermps reads only the low four bits of each lane, which are the code.
      const __m512i codes = _mm512_srli_epi32(_mm512_loadu_si512(values), code_shift(i));
      return _mm512_fmadd_ps(_mm512_permutexvar_ps(codes, floats), scale, minus_zero);
    } else if constexpr (kValue == Value::kF32) {
      return _mm512_loadu_ps(values + i * kColumns * 4);
    } else {
      const __m256i halves =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i * kColumns * 2));
      if constexpr (kValue == Value::kF16) return floats_of_f16(halves);
      return _mm512_castsi512_ps(_mm512_slli_epi32(widen_halves(halves), 16));
    }
  }

  LAMINA_INLINE static __m512i indices_of(const LineOf& line) {
    return _mm512_srl_epi32(_mm512_loadu_si512(line.indices), _mm_cvtsi32_si128(line.shift));
  }

  LAMINA_INLINE static void dequantize(const uint8_t* tile, int64_t at, const float* scale,
                                       const float* minus_zero, float* to) {
    const auto line = line_at<bits_of(kValue)>(tile, at);
    const __m512i indices = indices_of(line);
    const __m512 s = _mm512_load_ps(scale), z = _mm512_load_ps(minus_zero);
    unroll<kKept>([&](auto i) LAMINA_INLINE {
      _mm512_store_ps(to + 2 * i * kColumns, weights(line.values, i, s, z));
      _mm512_store_si512(to + (2 * i + 1) * kColumns, _mm512_srli_epi32(indices, index_shift(i)));
    });
  }

  template <int kRows, int kTiles>
  using Sums = __m512[kRows][kTiles];

  template <int kRows, int kTiles>
  LAMINA_INLINE static void load_sums(const float* y, Sums<kRows, kTiles>& sum) {
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        sum[r][t] = _mm512_loadu_ps(y + r * kTileN + t * kColumns);
      });
    });
  }

  template <int kRows, int kTiles>
  LAMINA_INLINE static void store_sums(const Sums<kRows, kTiles>& sum, float* y) {
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        _mm512_storeu_ps(y + r * kTileN + t * kColumns, sum[r][t]);
      });
    });
  }

  template <int kRows, int kTiles>
  static void multiply_fixed(const Step& step) {
    const float *a = step.a, *w = step.w;
    Sums<kRows, kTiles> sum;
    load_sums<kRows, kTiles>(step.y, sum);
    for (int64_t k = 0; k < step.k; k += kGroupK, a += kRows * kGroupK, w += kGroupK * kColumns) {
      __m512 row[kRows];
      unroll<kRows>([&](auto r) LAMINA_INLINE { row[r] = group_of(a + r * kGroupK); });
      unroll<2>([&](auto kept) LAMINA_INLINE {
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          const float* const at = w + t * (kBlockK * kColumns) + kept * 2 * kColumns;
          const __m512 weight = _mm512_load_ps(at);
          const __m512i index = _mm512_load_si512(at + kColumns);
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            sum[r][t] = _mm512_fmadd_ps(pick_in_quarters(row[r], index), weight, sum[r][t]);
          });
        });
      });
    }
    store_sums<kRows, kTiles>(sum, step.y);
  }

  template <int kTiles>
  static void multiply_tiles(const Step& step) {
    const auto multiply =
        std::array{multiply_fixed<1, kTiles>, multiply_fixed<2, kTiles>, multiply_fixed<3, kTiles>,
                   multiply_fixed<4, kTiles>, multiply_fixed<5, kTiles>};
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }

  static void multiply(const Step& step) {
    if (step.tiles_n == kTiles) return multiply_tiles<kTiles>(step);
    Step one = step;
    for (int t = 0; t < step.tiles_n; ++t) {
      multiply_tiles<1>(one);
      one.w += kBlockK * kColumns;
      one.y += kColumns;
    }
  }

  // multiply_lines() for kTiles tiles of 16 columns from `column` on.
  template <int kRows, int kTiles>
  LAMINA_INLINE static void multiply_lines_of(const Lines& lines, int column) {
    const float* a = lines.a;
    const uint8_t* const w = lines.w + column / kColumns * lines.w_stride;
    Sums<kRows, kTiles> sum;
    load_sums<kRows, kTiles>(lines.y + column, sum);
    __m512 scale[kTiles], minus_zero[kTiles];
    unroll<kTiles>([&](auto t) LAMINA_INLINE {
      scale[t] = _mm512_load_ps(lines.scale + column + t * kColumns);
      minus_zero[t] = _mm512_load_ps(lines.minus_zero + column + t * kColumns);
    });
    for (int64_t i = 0; i < lines.count; ++i) {
      const auto line = line_at<bits_of(kValue)>(w, lines.k + i * kLineK);
      __m512i indices[kTiles];
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        const int64_t tile = t * lines.w_stride;
        for (int ahead = 0; ahead < kKept * kColumns * bits_of(kValue) / 8; ahead += 64)
          __builtin_prefetch(line.values + tile + kStreamAhead + ahead, 0, 2);
        indices[t] = indices_of({line.indices + tile, line.values, line.shift});
      });
      unroll<kKept>([&](auto kept) LAMINA_INLINE {
        __m512 row[kRows];
        unroll<kRows>(
            [&](auto r) LAMINA_INLINE { row[r] = group_of(a + (kept / 2 * kRows + r) * kGroupK); });
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          const __m512 weight =
              weights(line.values + t * lines.w_stride, kept, scale[t], minus_zero[t]);
          const __m512i index = _mm512_srli_epi32(indices[t], index_shift(kept));
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            sum[r][t] = _mm512_fmadd_ps(pick_in_quarters(row[r], index), weight, sum[r][t]);
          });
        });
      });
      a += kLineK * kRows;
    }
    store_sums<kRows, kTiles>(sum, lines.y + column);
  }

  template <int kRows>
  static void multiply_rows(const Lines& lines) {
    constexpr int kAtOnce = kRows <= 2 ? kTiles : 2;
    for (int t = 0; t < kTiles; t += kAtOnce)
      multiply_lines_of<kRows, kAtOnce>(lines, t * kColumns);
  }

  static void multiply_lines(const Lines& lines) {
    const auto multiply = std::array{multiply_rows<1>, multiply_rows<2>, multiply_rows<3>,
                                     multiply_rows<4>, multiply_rows<5>};
    multiply[static_cast<size_t>(lines.rows - 1)](lines);
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int4_avx512_vnni =
    make_int4_kernel<Tile>("matmul_sparse24_int4_avx512_vnni", Isa::kAvx512Vnni, 30);

extern constinit const CpuKernel matmul_sparse24_avx512_vnni =
    make_float_kernel<Tile>("matmul_sparse24_avx512_vnni", Isa::kAvx512Vnni, 30);

}  // namespace lamina::matmul_sparse24
