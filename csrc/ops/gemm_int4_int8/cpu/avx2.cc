// gemm_int4_int8 / avx2: vpmaddubsw multiplies codes 0..15 by signed activations and adds pairs in int16. A pair is
// at most 15 * 128 * 2, so int16 holds the sum of eight pairs, and only every eighth sum is widened to int32 by
// vpmaddwd.
//
// Ports  32 MACs take vpmaddubsw, vpaddw and an eighth of vpmaddwd and vpaddd: 2.2 vector uops on three ports, so 43
//        MACs a cycle. Scaling a group of 32 adds vcvtdq2ps and a fused multiply-add to 18 uops.
// Tile   4 rows x 16 columns = 8 accumulators + 2 weights + row + product of 16 registers
#include <immintrin.h>

#include <array>

#include "gemm/cpu/pack_bytes.h"
#include "ops/gemm_int4_int8/cpu/body.h"

namespace lamina::gemm_int4_int8 {
namespace {

// int16 can hold the sums of this many groups of four k: 8 * 15 * 128 * 2 < 2^15.
constexpr int kFoursOfHalves = 8;

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = 4, kRowStep = 1, kTileN = 64;
  static constexpr bool kScales = true, kUnpacks = true, kTakesSigned = false;
  static constexpr int kGroupStep = kInt4GroupStep;
  static constexpr int packed_rows(int rows) { return rows; }
  static constexpr int64_t packed_at(int rows, int64_t k) { return k * rows; }
  static constexpr int tiles_at_once(int64_t) { return 1; }
  static constexpr int kVectors = 2;

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    pack_bytes(a, a_stride, rows, k, 0, packed);
  }

  LAMINA_INLINE static __m256i broadcast(const int8_t* four) {
    int32_t value;
    std::memcpy(&value, four, sizeof value);
    return _mm256_set1_epi32(value);
  }

  template <int kRows, Codes kCodes>
  static void multiply_rows(const Step& step) {
    const int8_t *a = step.a, *w = step.w;
    float* const y = step.y;
    int32_t* const acc = step.acc;
    for (int i = 0; i < step.count; ++i) {
      const Piece piece = step.pieces[i];
      const float* const scale = piece.scale + step.column;
      const float* const zero_point = piece.zero_point + step.column;
      const int32_t* const a_sum = step.a_sums + piece.group * kTileM;
      bool begins = piece.begins;
      for (int left = piece.fours; left > 0; left -= kFoursOfHalves) {
        __m256i half[kRows][kVectors];
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          unroll<kVectors>([&](auto v) LAMINA_INLINE { half[r][v] = _mm256_setzero_si256(); });
        });
        const auto add_four = [&](const __m256i(&weight)[kVectors]) LAMINA_INLINE {
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            const __m256i row = broadcast(a + r * int8_tile::kGroupK);
            unroll<kVectors>([&](auto v) LAMINA_INLINE {
              half[r][v] =
                  in_order(_mm256_add_epi16(half[r][v], _mm256_maddubs_epi16(weight[v], row)));
            });
          });
          a += kRows * int8_tile::kGroupK;
        };
        const int fours = std::min(left, kFoursOfHalves);
        if constexpr (kCodes == Codes::kPacked) {
          for (int f = 0; f < fours; f += 2, w += 64) {  // past an odd end, activations are 0
            __builtin_prefetch(w + step.ahead(w), 0, 2);
            const __m256i packed[kVectors] = {load(w), load(w + 32)}, low = _mm256_set1_epi8(15);
            add_four({_mm256_and_si256(packed[0], low), _mm256_and_si256(packed[1], low)});
            add_four({_mm256_and_si256(_mm256_srli_epi16(packed[0], 4), low),
                      _mm256_and_si256(_mm256_srli_epi16(packed[1], 4), low)});
          }
        } else {
          for (int f = 0; f < fours; ++f, w += 64) add_four({load(w), load(w + 32)});
        }
        const int32_t zero = step.scaling == Scaling::kSymmetric ? -kSymmetricZeroPoint : 0;
        const auto finish = [&](auto is_new, auto scaling) LAMINA_INLINE {
          unroll<kRows>([&](auto r) LAMINA_INLINE {
            unroll<kVectors>([&](auto v) LAMINA_INLINE {
              constexpr int kAt = r * kTileN + v * 8;
              const __m256i before = is_new ? _mm256_set1_epi32(zero * a_sum[r]) : load(acc + kAt);
              const __m256i sum =
                  _mm256_add_epi32(before, _mm256_madd_epi16(half[r][v], _mm256_set1_epi16(1)));
              if constexpr (scaling == Scaling::kNone) {
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + kAt), sum);
              } else {
                add_group<scaling>(sum, scale + v * 8, zero_point + v * 8, a_sum[r], y + kAt);
              }
            });
          });
        };
        const bool is_done = piece.ends && left <= kFoursOfHalves;
        with_scaling(is_done ? step.scaling : Scaling::kNone, [&](auto scaling) LAMINA_INLINE {
          if (begins) {
            finish(std::true_type{}, scaling);
          } else {
            finish(std::false_type{}, scaling);
          }
        });
        begins = false;
      }
    }
  }

  // Adds the scaled sums of a group to y.
  template <Scaling kScaling>
  LAMINA_INLINE static void add_group(__m256i sum, const float* scale, const float* zero_point,
                                      int32_t a_sum, float* y) {
    __m256 x = _mm256_cvtepi32_ps(sum);
    if constexpr (kScaling == Scaling::kZeroPoints)
      x = _mm256_fnmadd_ps(_mm256_loadu_ps(zero_point), _mm256_set1_ps(static_cast<float>(a_sum)),
                           x);
    _mm256_storeu_ps(y, _mm256_fmadd_ps(x, _mm256_loadu_ps(scale), _mm256_loadu_ps(y)));
  }

  template <Codes kCodes>
  static void multiply(const Step& step) {
    const auto multiply = std::array{multiply_rows<1, kCodes>, multiply_rows<2, kCodes>,
                                     multiply_rows<3, kCodes>, multiply_rows<4, kCodes>};
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int4_int8_avx2 =
    make_kernel<Tile>("gemm_int4_int8_avx2", Isa::kAvx2, 40);

}  // namespace lamina::gemm_int4_int8
