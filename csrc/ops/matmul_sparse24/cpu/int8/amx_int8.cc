// matmul_sparse24_int8 / amx_int8: 2:4 weights become dense tiles in L1, which gemm/cpu/amx_product.h multiplies.
//
// Count  AMX takes dense tiles alone, so it saves bytes and no products. A tile of 16 x 64 weights takes 8 steps of 12
//        uops on the two vector ports, 48 cycles, and then 16 cycles for each 16 rows. Its 640 bytes take 80 to 160
//        cycles from DRAM, where dense weights take 1.6 times as long, so up to 64 rows memory bounds both. With 256
//        rows, which share an expanded block, the expansion adds 48 to 256 cycles: at most 0.84 of the dense kernel.
//        avx512_vnni takes 8 + 8 m cycles for a tile, so below 17 rows nothing is won, and 5 times as much at 64.
//        Floats have no AMX kernel, because AMX adds pairs of products and flushes subnormal numbers; int4 codes have
//        none, because they would pass L1 twice.
#include <array>
#include <climits>

#include "base/avx512.h"
#include "base/unroll.h"
#include "gemm/cpu/amx_product.h"
#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

// For vpshufb, by the two indices of a group, i0 | i1 << 2: which of a column's four kept values, `first` or the next,
// goes to each of the four bytes of the group. 0x80 gives 0.
constexpr std::array<uint32_t, 16> controls(uint32_t first) {
  std::array<uint32_t, 16> table{};
  for (uint32_t code = 0; code < 16; ++code)
    for (uint32_t byte = 0; byte < 4; ++byte) {
      const uint32_t value = byte == code % 4 ? first : byte == code / 4 ? first + 1 : 0x80;
      table[code] |= value << 8 * byte;
    }
  return table;
}
constexpr std::array<uint32_t, 16> kControls[] = {controls(0),
                                                  controls(2)};  // of a step's two groups

struct Tile : AmxProduct {
  static constexpr int kOffset = 0;

  // The block of weights that was expanded last; all panels of rows multiply it.
  struct Expanded {
    const int8_t* of;
    int tiles_n;
    int64_t tiles_k;
    alignas(64) int8_t tiles[kTileN / int8_tile::kTileN][kBlockTilesK][int8_tile::kTileBytes];
  };
  static Expanded& expanded() {
    static thread_local Expanded block;
    return block;
  }

  // An earlier call may have had other weights at the same address.
  struct Session : AmxSession {
    Session() { expanded().of = nullptr; }
  };

  // The dense bytes of the two groups of a step, as layout/int8_tile.h has them.
  template <int kStep>
  LAMINA_INLINE static void expand_step(__m512i indices, __m512i values, int8_t* to) {
    const __m512i columns = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    unroll<2>([&](auto group) LAMINA_INLINE {
      constexpr int kShift = 2 * kStep + 16 * group, kSelect = 0xca;
      const __m512i code =
          _mm512_ternarylogic_epi32(_mm512_set1_epi32(3), _mm512_srli_epi32(indices, kShift),
                                    _mm512_srli_epi32(indices, kShift + 6), kSelect);
      const __m512i control = _mm512_or_si512(
          columns, _mm512_permutexvar_epi32(code, _mm512_loadu_si512(kControls[group].data())));
      _mm512_store_si512(to + group * kAmxRowBytes, _mm512_shuffle_epi8(values, control));
    });
  }

  static void expand(const int8_t* w, int64_t w_stride, int tiles_n, int64_t tiles_k) {
    Expanded& block = expanded();
    if (block.of == w && block.tiles_n == tiles_n && block.tiles_k == tiles_k) return;
    block.of = w;
    block.tiles_n = tiles_n;
    block.tiles_k = tiles_k;
    for (int t = 0; t < tiles_n; ++t) {
      const int8_t* span = w + t * w_stride;
      int8_t* to = block.tiles[t][0];
      for (int64_t s = 0; s < tiles_k * sparse24_rows::kSpans; ++s, span += kSpanBytes) {
        for (int line = 0; line < kSpanBytes; line += 64)
          __builtin_prefetch(span + kStreamAhead + line, 0, 2);
        const __m512i indices = _mm512_loadu_si512(span);
        unroll<sparse24_rows::kSteps>([&](auto step) LAMINA_INLINE {
          const int8_t* const values = span + sparse24_rows::kIndexBytes + step * kStepBytes;
          expand_step<step>(indices, _mm512_loadu_si512(values), to);
          to += 2 * kAmxRowBytes;
        });
      }
    }
  }

  static void multiply(int rows, const int8_t* a, const int8_t* w, int64_t w_stride, int tiles_n,
                       int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch) {
    for (int64_t k = 0; k < tiles_k; k += kBlockTilesK) {
      const int64_t count = std::min(kBlockTilesK, tiles_k - k);
      expand(w + k * kTileBytes, w_stride, tiles_n, count);
      const int8_t* const dense = expanded().tiles[0][0];
      multiply_products<int8_tile::kTileK>(rows, tiles_n, a + k * packed_bytes(rows), dense,
                                           kBlockTilesK * int8_tile::kTileBytes, int64_t{0}, count,
                                           acc, accumulate || k > 0, Prefetch{dense, INT_MAX});
    }
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int8_amx_int8 =
    make_kernel<Tile>("matmul_sparse24_int8_amx_int8", Isa::kAmxInt8, 512);

}  // namespace lamina::matmul_sparse24
