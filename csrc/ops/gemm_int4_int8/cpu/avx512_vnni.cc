// gemm_int4_int8 / avx512_vnni: vpdpbusd multiplies codes 0..15 by signed activations and adds four products in int32.
//
// Ports  64 MACs an instruction, two instructions a cycle. Scaling a group of 32 adds vcvtdq2ps and a fused
//        multiply-add to 8 instructions.
// Tile   6 rows x 64 columns = 24 accumulators + 4 weights + 1 broadcast of 32 registers. 7 and 8 rows take 32 columns
//        at a time, so that up to 8 rows read packed codes and unpack them once.
#include <array>

#include "gemm/cpu/pack_bytes.h"
#include "ops/gemm_int4_int8/cpu/body.h"
#include "ops/gemm_int4_int8/cpu/scale512.h"

namespace lamina::gemm_int4_int8 {
namespace {

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 8, kRowStep = 1, kTileN = 64;
  static constexpr int kWideRows = 6;  // most rows for which the accumulators of 64 columns fit
  static constexpr bool kScales = true, kUnpacks = true, kTakesSigned = false;
  static constexpr int kGroupStep = kInt4GroupStep;
  static constexpr int packed_rows(int rows) { return rows; }
  static constexpr int64_t packed_at(int rows, int64_t k) { return k * rows; }
  static constexpr int tiles_at_once(int64_t) { return kTileN / int4::kTileN; }

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_bytes(a, a_stride, rows, k, 0, packed);
  }

  template <int kRows, int kTiles, Codes kCodes>
  static void multiply_fixed(const Step& step) {
    const int8_t *a = step.a, *w = step.w;
    float* const y = step.y;
    int32_t* const acc = step.acc;
    for (int i = 0; i < step.count; ++i) {
      const Piece piece = step.pieces[i];
      const float* const scale = piece.scale + step.column;
      const float* const zero_point = piece.zero_point + step.column;
      const int32_t* const a_sum = step.a_sums + piece.group * kTileM;
      __m512i sum[kRows][kTiles];
      if (piece.begins) {
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          const int32_t first =
              step.scaling == Scaling::kSymmetric ? -kSymmetricZeroPoint * a_sum[r] : 0;
          unroll<kTiles>([&](auto t) LAMINA_INLINE { sum[r][t] = _mm512_set1_epi32(first); });
        });
      } else {
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          unroll<kTiles>([&](auto t) LAMINA_INLINE {
            sum[r][t] = _mm512_loadu_si512(acc + r * kTileN + t * 16);
          });
        });
      }
      const auto add_four = [&](const __m512i(&weight)[kTiles]) LAMINA_INLINE {
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          int32_t four;
          std::memcpy(&four, a + r * int8_tile::kGroupK, sizeof four);
          const __m512i row = _mm512_set1_epi32(four);
          unroll<kTiles>([&](auto t) LAMINA_INLINE {
            sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], weight[t], row);
          });
        });
        a += kRows * int8_tile::kGroupK;
      };
      if constexpr (kCodes == Codes::kPacked) {
        for (int f = 0; f < piece.fours; f += 2, w += 64) {  // past an odd end, activations are 0
          const int64_t ahead = step.ahead(w);
          __m512i low[kTiles], high[kTiles];
          unroll<kTiles>([&](auto t) LAMINA_INLINE {
            const int8_t* const at = w + t * step.w_stride;
            __builtin_prefetch(at + ahead, 0, 2);
            const __m512i packed = _mm512_loadu_si512(at), mask = _mm512_set1_epi8(15);
            low[t] = _mm512_and_si512(packed, mask);
            high[t] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
          });
          add_four(low);
          add_four(high);
        }
      } else {
        for (int f = 0; f < piece.fours; ++f, w += 64) {
          __m512i weight[kTiles];
          unroll<kTiles>(
              [&](auto t) LAMINA_INLINE { weight[t] = _mm512_loadu_si512(w + t * step.w_stride); });
          add_four(weight);
        }
      }
      with_scaling(piece.ends ? step.scaling : Scaling::kNone, [&](auto scaling) LAMINA_INLINE {
        unroll<kTiles>([&](auto t) LAMINA_INLINE {
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            constexpr int kAt = r * kTileN + t * 16;
            if constexpr (scaling == Scaling::kNone) {
              _mm512_storeu_si512(acc + kAt, sum[r][t]);
            } else {
              add_group<scaling>(sum[r][t], scale + t * 16, zero_point + t * 16, a_sum[r], y + kAt);
            }
          });
        });
      });
    }
  }

  template <int kTiles, Codes kCodes>
  static void multiply_tiles(const Step& step) {
    const auto multiply =
        std::array{multiply_fixed<1, kTiles, kCodes>, multiply_fixed<2, kTiles, kCodes>,
                   multiply_fixed<3, kTiles, kCodes>, multiply_fixed<4, kTiles, kCodes>,
                   multiply_fixed<5, kTiles, kCodes>, multiply_fixed<6, kTiles, kCodes>};
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }

  template <int kTiles, Codes kCodes>
  static void multiply_high(const Step& step) {
    if (step.rows == 7) return multiply_fixed<7, kTiles, kCodes>(step);
    multiply_fixed<8, kTiles, kCodes>(step);
  }

  // Calls body for each kTiles tiles of a step.
  template <int kTiles>
  static void for_tiles(const Step& step, const auto& body) {
    Step some = step;
    for (int t = 0; t < step.tiles_n; t += kTiles) {
      body(some);
      some.w += kTiles * step.w_stride;
      some.acc += kTiles * int4::kTileN;
      some.y += kTiles * int4::kTileN;
      some.column += kTiles * int4::kTileN;
    }
  }

  template <Codes kCodes>
  static void multiply(const Step& step) {
    if (kCodes == Codes::kPacked || step.tiles_n == 4) {
      if (step.rows <= kWideRows) return multiply_tiles<4, kCodes>(step);
      return for_tiles<2>(step, multiply_high<2, kCodes>);
    }
    if (step.rows <= kWideRows) return for_tiles<1>(step, multiply_tiles<1, Codes::kBytes>);
    for_tiles<1>(step, multiply_high<1, Codes::kBytes>);
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int4_int8_avx512_vnni =
    make_kernel<Tile>("gemm_int4_int8_avx512_vnni", Isa::kAvx512Vnni, 110);

}  // namespace lamina::gemm_int4_int8
