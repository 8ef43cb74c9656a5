// gemm_int4_int8 / amx_int8: codes expanded to bytes are multiplied like the weights of gemm_int8
// (gemm/cpu/amx_product.h); AVX-512 scales the sums.
//
// Ports  For 16 x 16 outputs, the products of a group of 128 take 32 cycles, those of a group of 32 take 16, and
//        scaling takes about 40.
#include <climits>

#include "gemm/cpu/amx_product.h"
#include "ops/gemm_int4_int8/cpu/body.h"
#include "ops/gemm_int4_int8/cpu/scale512.h"

namespace lamina::gemm_int4_int8 {
namespace {

// If groups end in the middle of a tile, each product covers half the k of a tile. It takes as long as a whole
// product, but no group has to be cut.
inline constexpr int kHalfK = int8_tile::kTileK / 2;
inline bool takes_halves(const Problem& p) {
  return p.group % int8_tile::kTileK != 0 && p.groups() > 1;
}

struct Tile : AmxProduct {
  struct Session : AmxSession {
    explicit Session(const Problem& p) : AmxSession(takes_halves(p) ? kHalfK : kAmxRowBytes) {}
  };
  static constexpr bool kScales = true, kUnpacks = false, kTakesSigned = true;
  static constexpr int kGroupStep = kHalfK;
  static constexpr int64_t packed_at(int rows, int64_t k) {
    return k / int8_tile::kTileK * packed_bytes(rows) + k % int8_tile::kTileK;
  }

  // With signed codes, 16 sums take two instructions of the arithmetic ports.
  LAMINA_NOINLINE static void add_sums(const Step& step, const Piece& piece) {
    const int32_t* const a_sum = step.a_sums + piece.group * kTileM;
    for (int t = 0; t < step.tiles_n; ++t) {
      const int column = step.column + t * int4::kTileN;
      const __m512 scale = _mm512_loadu_ps(piece.scale + column);
      for (int r = 0; r < step.rows; ++r) {
        const int at = r * kTileN + t * int4::kTileN;
        const __m512i sum = _mm512_loadu_si512(step.acc + at);
        if (step.scaling == Scaling::kSymmetric) {
          float* const y = step.y + at;
          _mm512_storeu_ps(y, _mm512_fmadd_ps(to_floats(sum), scale, _mm512_loadu_ps(y)));
        } else {
          add_group<Scaling::kZeroPoints>(sum, piece.scale + column, piece.zero_point + column,
                                          a_sum[r], step.y + at);
        }
      }
    }
  }

  template <int kProductK>
  static void multiply_pieces(const Step& step) {
    constexpr int kFours = kProductK / int8_tile::kGroupK;
    const int8_t *tile = step.a - step.first_four * int8_tile::kGroupK, *w = step.w;
    int64_t first = step.first_four / kFours;
    for (int i = 0; i < step.count; ++i) {
      const Piece& piece = step.pieces[i];
      const int64_t products = ceil_div(piece.fours, kFours);
      multiply_products<kProductK>(step.rows, step.tiles_n, tile, w, step.w_stride, first, products,
                                   step.acc, !piece.begins, Prefetch{w, INT_MAX});
      if (step.scaling != Scaling::kNone && piece.ends) add_sums(step, piece);
      first += products;
      w += products * (kFours * kAmxRowBytes);
    }
  }

  template <Codes>
  static void multiply(const Step& step) {
    if (takes_halves(step.problem)) {
      multiply_pieces<kHalfK>(step);
    } else {
      multiply_pieces<int8_tile::kTileK>(step);
    }
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int4_int8_amx_int8 =
    make_kernel<Tile>("gemm_int4_int8_amx_int8", Isa::kAmxInt8, 512);

}  // namespace lamina::gemm_int4_int8
