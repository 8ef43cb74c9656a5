// gemm_int4_int8 / amx_int8: codes as bytes are gemm_int8's weights (ops/gemm_int8/cpu/amx_product.h); scaling is that
// of AVX-512.
//
// Ports  a group of 128: 32 cycles for 16 x 16 outputs, scaling them about 40.
#include <climits>

#include "ops/gemm_int4_int8/cpu/body.h"
#include "ops/gemm_int4_int8/cpu/scale512.h"
#include "ops/gemm_int8/cpu/amx_product.h"

namespace lamina::gemm_int4_int8 {
namespace {

struct Tile : gemm_int8::AmxProduct {
  static constexpr bool kScales = true, kUnpacks = false;
  static constexpr int kGroupStep = int8_tile::kTileK;

  LAMINA_NOINLINE static void add_sums(const Step& step, const Piece& piece) {
    const int32_t* const a_sum = step.a_sums + piece.group * kTileM;
    for (int t = 0; t < step.tiles_n; ++t)
      for (int r = 0; r < step.rows; ++r) {
        const int at = r * kTileN + t * int4::kTileN;
        __m512i sum = _mm512_loadu_si512(step.acc + at);
        if (step.scaling == Scaling::kSymmetric)
          sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(kSymmetricZeroPoint * a_sum[r]));
        add_group(sum, piece, step.scaling, step.column + t * int4::kTileN, a_sum[r], step.y + at);
      }
  }

  template <Codes>
  static void multiply(const Step& step) {
    const int8_t *a = step.a, *w = step.w;
    for (int i = 0; i < step.count; ++i) {
      const Piece& piece = step.pieces[i];
      const int64_t tiles = ceil_div(piece.fours, int8_tile::kGroups);
      AmxProduct::multiply(step.rows, a, w, step.w_stride, step.tiles_n, tiles, step.acc,
                           !piece.begins, {w, INT_MAX});
      if (step.scaling != Scaling::kNone && piece.ends) add_sums(step, piece);
      a += tiles * packed_bytes(step.rows);
      w += tiles * int8_tile::kTileBytes;
    }
  }
};

}  // namespace

gemm_int4::CpuKernel gemm_int4_int8_amx_int8(int64_t min_m) {
  return make_kernel<Tile>("gemm_int4_int8_amx_int8", Isa::kAmxInt8, min_m, 512);
}

}  // namespace lamina::gemm_int4_int8
