// matmul_sparse24_int8 / avx512_vnni: vpshufb picks activations, vpdpbusd multiplies.
// Activations are packed as a + 128; the epilogue subtracts 128 * column sum.
//
// Count  Select: 64 kept values, 128 dense weights, take vpsrld and vpternlogd for the indices of all rows and, for a
//        row, vpshufb and vpdpbusd. Expand: twice vpermd (a table of controls), vpord and vpshufb, and for a row
//        vpdpbusd twice. Select is 2 + 2 m uops, expand 6 + 2 m, the dense kernel 2 m: select is the better for every
//        m. Its row costs one uop on the multiply ports where dense has two, and one on the shuffle port.
//        One row: 4 uops, 2 cycles, for 80 bytes; DRAM gives a core 2 to 8 bytes a cycle.
//        Many rows on Intel, where vpshufb has one port: about 0.8 of the speed of the dense kernel, by count.
// Tile   5 rows x 64 columns = 20 accumulators + 5 rows + values, indices, selected and 2 constants of 32 registers
#include "base/avx512.h"
#include "base/unroll.h"
#include "base/with_constant.h"
#include "gemm/cpu/pack_bytes.h"
#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 5, kRowStep = 1;
  static constexpr int kTileN = 4 * sparse24_rows::kTileN;
  static constexpr int kOffset = 128;
  static constexpr int strip(int64_t) { return kTileN; }
  static constexpr int tiles_at_once(int64_t) { return kTileN / sparse24_rows::kTileN; }
  static constexpr int packed_bytes(int rows) {
    return rows * sparse24_rows::kTileK;
  }  // [step of 8 k][row][8]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_groups(a, a_stride, rows, k, uint64_t{0x8080808080808080u}, packed);
  }

  // The bytes of 8 activations that the values of step `kStep` take, for vpshufb.
  template <int kStep>
  LAMINA_INLINE static __m512i control(__m512i indices) {
    constexpr int kOrOfAnd =
        0xf8;  // values 2 and 3 belong to the second group: 4 is added to their index
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x04040000),
                                     _mm512_srli_epi32(indices, 2 * kStep),
                                     _mm512_set1_epi32(0x03030303), kOrOfAnd);
  }

  template <int kRows, int kTiles>
  static void multiply_fixed(const int8_t* a, const int8_t* w, int64_t w_stride, int64_t spans,
                             int32_t* acc, bool accumulate, Prefetch ahead) {
    constexpr int kStepK = sparse24_rows::kStepK, kSteps = sparse24_rows::kSteps;
    __m512i sum[kRows][kTiles];
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        sum[i][t] =
            accumulate ? _mm512_load_si512(acc + i * kTileN + t * 16) : _mm512_setzero_si512();
      });
    });
    for (int64_t span = 0; span < spans; ++span, w += kSpanBytes) {
      ahead.pass<kTiles>(kSpanBytes / 64, w_stride);
      unroll<kSteps>([&](auto step) LAMINA_INLINE {
        __m512i row[kRows];
        unroll<kRows>([&](auto i) LAMINA_INLINE {
          long long eight;
          std::memcpy(&eight, a + i * kStepK, sizeof eight);
          row[i] = _mm512_set1_epi64(eight);
        });
        a += kRows * kStepK;
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          const int8_t* const tile = w + t * w_stride;
          const __m512i pick = control<step>(_mm512_loadu_si512(tile));
          const __m512i values =
              _mm512_loadu_si512(tile + sparse24_rows::kIndexBytes + step * kStepBytes);
          unroll<kRows>([&](auto i) LAMINA_INLINE {
            sum[i][t] = _mm512_dpbusd_epi32(sum[i][t], _mm512_shuffle_epi8(row[i], pick), values);
          });
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
        multiply_fixed<tile_rows, tiles>(a, w, w_stride, tiles_k * sparse24_rows::kSpans, acc,
                                         accumulate, ahead);
      });
    });
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int8_avx512_vnni =
    make_kernel<Tile>("matmul_sparse24_int8_avx512_vnni", Isa::kAvx512Vnni, 128);

}  // namespace lamina::matmul_sparse24
