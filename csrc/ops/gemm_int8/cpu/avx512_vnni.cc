// gemm_int8 / avx512_vnni: vpdpbusd multiplies unsigned by signed bytes and adds four products in
// int32 without saturation. Activations are packed as a + 128; the epilogue subtracts 128 * column sum.
//
// Ports  64 MACs an instruction, two a cycle. Per group of 4 k: 4 weight loads, 6 broadcast loads and
//        24 vpdpbusd: 12 cycles of multiplies over 5 of loads.
// Tile   6 rows x 64 columns = 24 accumulators + 4 weights + 1 broadcast of 32 registers.
#include "base/avx512.h"
#include "base/unroll.h"
#include "base/with_constant.h"
#include "gemm/cpu/pack_bytes.h"
#include "ops/gemm_int8/cpu/dense.h"

namespace lamina::gemm_int8 {
namespace {

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 6, kRowStep = 1;
  static constexpr int kTileN = 4 * int8_tile::kTileN;
  static constexpr int kOffset = 128;
  static constexpr int strip(int64_t) { return kTileN; }
  static constexpr int tiles_at_once(int64_t) { return kTileN / int8_tile::kTileN; }
  static constexpr int kRowBytes = int8_tile::kTileN * int8_tile::kGroupK;
  static constexpr int packed_bytes(int rows) {
    return rows * int8_tile::kTileK;
  }  // [group of 4 k][row][4]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_bytes(a, a_stride, rows, k, 0x80808080u, packed);
  }

  template <int kRows, int kTiles>
  static void multiply_fixed(const int8_t* a, const int8_t* w, int64_t w_stride, int64_t groups,
                             int32_t* acc, bool accumulate, Prefetch ahead) {
    __m512i sum[kRows][kTiles];
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        sum[i][t] =
            accumulate ? _mm512_load_si512(acc + i * kTileN + t * 16) : _mm512_setzero_si512();
      });
    });
    for (int64_t g = 0; g < groups; ++g, w += kRowBytes, a += kRows * int8_tile::kGroupK) {
      ahead.pass<kTiles>(1, w_stride);
      __m512i weight[kTiles];
      unroll<kTiles>([&](auto t)
                         LAMINA_INLINE { weight[t] = _mm512_loadu_si512(w + t * w_stride); });
      unroll<kRows>([&](auto i) LAMINA_INLINE {
        int32_t group;
        std::memcpy(&group, a + i * int8_tile::kGroupK, sizeof group);
        const __m512i row = _mm512_set1_epi32(group);
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          sum[i][t] = _mm512_dpbusd_epi32(sum[i][t], row, weight[t]);
        });
      });
    }
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<kTiles>(
          [&](auto t) LAMINA_INLINE { _mm512_store_si512(acc + i * kTileN + t * 16, sum[i][t]); });
    });
  }

  static void multiply(int rows, const int8_t* a, const int8_t* w, int64_t w_stride, int tiles_n,
                       int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch ahead) {
    with_constant<kTileM>(rows, [&](auto tile_rows) LAMINA_INLINE {
      with_constant<4>(tiles_n, [&](auto tiles) LAMINA_INLINE {
        multiply_fixed<tile_rows, tiles>(a, w, w_stride, tiles_k * int8_tile::kGroups, acc,
                                         accumulate, ahead);
      });
    });
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int8_avx512_vnni =
    make_kernel<Tile>("gemm_int8_avx512_vnni", Isa::kAvx512Vnni, 128);

}  // namespace lamina::gemm_int8
