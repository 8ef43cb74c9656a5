// matmul_sparse24_int8 / avx2: vpshufb picks the activations of the kept weights. vpmaddubsw then multiplies |w| by the
// activation with the sign of w, which is exact: 2 * 128 * 127 < 2^15. Only -128 has no negative in int8. Where an
// activation is -128 the packed row has -127, and a second row of the tile, almost always empty, has the rest, -1.
//
// Count  Select: 32 kept values, 64 dense weights, take vpsrld, vpand, vpor and vpabsb for all rows and, for a row,
//        vpshufb, vpsignb, vpmaddubsw, vpmaddwd, vpaddd: 4 + 5 m uops. Expand: vpermd, vpor, vpshufb and vpxor for
//        each half and three uops for a row: 8 + 6 m. The dense kernel: 2 + 6 m. Select is the better for every m.
//        One row: 9 uops, 3 cycles on three ports, for 40 bytes; DRAM gives a core 2 to 8 bytes a cycle.
// Tile   5 rows x 16 columns = 10 accumulators + row, indices, |w|, product and ones of 16 registers;
//        one row x 64 columns = 8 accumulators, to read four streams of weights
#include <immintrin.h>

#include <array>

#include "base/unroll.h"
#include "ops/matmul_sparse24/cpu/int8/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

constexpr int kRowsMost = 5;
constexpr int kStepK = sparse24_rows::kStepK;

// A packed tile of 64 k: this header, then the activations and, after them, the rests [step of 8 k][row][8].
struct alignas(64) Header {
  uint32_t rows_with_rests;  // one bit each
};
static_assert(sizeof(Header) == 64);

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

void store(int32_t* at, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), v); }

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = kRowsMost, kRowStep = 1;
  static constexpr int kTileN = 4 * sparse24_rows::kTileN;
  static constexpr int kOffset = 0;
  // A block of up to 32 rows stays in L1 beside the weights of 16 columns.
  static constexpr int strip(int64_t rows) { return rows <= 32 ? kTileN : sparse24_rows::kTileN; }
  static constexpr int tiles_at_once(int64_t rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
  static constexpr int packed_bytes(int rows) {
    return static_cast<int>(sizeof(Header)) + 2 * rows * sparse24_rows::kTileK;
  }
  static constexpr int rests_at(int rows) {
    return static_cast<int>(sizeof(Header)) + rows * sparse24_rows::kTileK;
  }

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    for (int64_t p = 0; p < k; p += sparse24_rows::kTileK, packed += packed_bytes(rows)) {
      const auto count = static_cast<size_t>(std::min<int64_t>(sparse24_rows::kTileK, k - p));
      Header& header = *reinterpret_cast<Header*>(packed);
      header = {};
      for (int r = 0; r < rows; ++r) {
        alignas(32) int8_t row[sparse24_rows::kTileK] = {};
        std::memcpy(row, a + r * a_stride + p, count);
        for (int half = 0; half < 2; ++half) {
          const __m256i given = load(row + half * 32);
          const __m256i value = _mm256_max_epi8(given, _mm256_set1_epi8(-127));
          const __m256i rest = _mm256_sub_epi8(given, value);
          if (!_mm256_testz_si256(rest, rest)) header.rows_with_rests |= 1u << r;
          alignas(32) std::array<int64_t, 4> values, rests;
          _mm256_store_si256(reinterpret_cast<__m256i*>(values.data()), value);
          _mm256_store_si256(reinterpret_cast<__m256i*>(rests.data()), rest);
          for (size_t i = 0; i < values.size(); ++i) {
            const int64_t at = (half * 4 + static_cast<int64_t>(i)) * rows + r;
            std::memcpy(packed + sizeof(Header) + at * kStepK, &values[i], kStepK);
            std::memcpy(packed + rests_at(rows) + at * kStepK, &rests[i], kStepK);
          }
        }
      }
    }
  }

  // sum += the products of kRows rows of a tile of k, which lie `a_stride` bytes apart in each step, with kTiles tiles
  // of 16 columns; each lane is one output.
  template <int kRows, int kTiles>
  LAMINA_INLINE static void add_tile(const int8_t* a, int64_t a_stride, const int8_t* w,
                                     int64_t w_stride, __m256i (&sum)[kRows][2 * kTiles]) {
    for (int span = 0; span < sparse24_rows::kSpans; ++span, w += kSpanBytes)
      unroll<sparse24_rows::kSteps>([&](auto step) LAMINA_INLINE {
        unroll<2 * kTiles>([&](auto v) LAMINA_INLINE {
          const int8_t* const tile = w + v / 2 * w_stride + v % 2 * 32;
          const __m256i index = _mm256_and_si256(_mm256_srli_epi32(load(tile), 2 * step),
                                                 _mm256_set1_epi32(0x03030303));
          // Values 2 and 3 belong to the second group of the step.
          const __m256i pick = _mm256_or_si256(index, _mm256_set1_epi32(0x04040000));
          const __m256i values = load(tile + sparse24_rows::kIndexBytes + step * kStepBytes);
          const __m256i size = _mm256_abs_epi8(values);
          unroll<kRows>([&](auto i) LAMINA_INLINE {
            long long eight;
            std::memcpy(&eight, a + i * kStepK, sizeof eight);
            const __m256i row = _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), pick);
            const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(row, values));
            sum[i][v] = in_order(
                _mm256_add_epi32(sum[i][v], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
          });
        });
        a += a_stride;
      });
  }

  template <int kRows, int kTiles>
  static void multiply_fixed(const int8_t* packed, const int8_t* w, int64_t w_stride,
                             int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch ahead) {
    __m256i sum[kRows][2 * kTiles];
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<2 * kTiles>([&](auto v) LAMINA_INLINE {
        sum[i][v] = accumulate ? load(acc + i * kTileN + v * 8) : _mm256_setzero_si256();
      });
    });
    for (int64_t t = 0; t < tiles_k; ++t, packed += packed_bytes(kRows), w += kTileBytes) {
      ahead.pass<kTiles>(kTileBytes / 64, w_stride);
      add_tile<kRows, kTiles>(packed + sizeof(Header), kRows * kStepK, w, w_stride, sum);
    }
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<2 * kTiles>([&](auto v) LAMINA_INLINE { store(acc + i * kTileN + v * 8, sum[i][v]); });
    });
  }

  // acc += the products of the rests with 16 columns. Few tiles have rests, so the sums stay in memory.
  template <int kRows>
  static void add_rests(const int8_t* packed, const int8_t* w, int64_t tiles_k, int32_t* acc) {
    for (int64_t t = 0; t < tiles_k; ++t, packed += packed_bytes(kRows), w += kTileBytes)
      for (uint32_t left = reinterpret_cast<const Header*>(packed)->rows_with_rests; left != 0;
           left &= left - 1) {
        const int row = std::countr_zero(left);
        int32_t* const at = acc + row * kTileN;
        __m256i sum[1][2] = {{load(at), load(at + 8)}};
        add_tile<1, 1>(packed + rests_at(kRows) + row * kStepK, kRows * kStepK, w, 0, sum);
        store(at, sum[0][0]);
        store(at + 8, sum[0][1]);
      }
  }

  template <int kRows>
  static void multiply_rows(const int8_t* packed, const int8_t* w, int64_t w_stride, int tiles_n,
                            int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch ahead) {
    constexpr int kTiles = tiles_at_once(kRows);
    if (tiles_n == kTiles) {
      multiply_fixed<kRows, kTiles>(packed, w, w_stride, tiles_k, acc, accumulate, ahead);
    } else {
      for (int t = 0; t < tiles_n; ++t)
        multiply_fixed<kRows, 1>(packed, w + t * w_stride, w_stride, tiles_k,
                                 acc + t * sparse24_rows::kTileN, accumulate,
                                 {ahead.at + t * w_stride, ahead.every});
    }
    uint32_t rests = 0;
    for (int64_t t = 0; t < tiles_k; ++t)
      rests |= reinterpret_cast<const Header*>(packed + t * packed_bytes(kRows))->rows_with_rests;
    if (rests == 0) return;
    for (int t = 0; t < tiles_n; ++t)
      add_rests<kRows>(packed, w + t * w_stride, tiles_k, acc + t * sparse24_rows::kTileN);
  }

  static void multiply(int rows, const int8_t* packed, const int8_t* w, int64_t w_stride,
                       int tiles_n, int64_t tiles_k, int32_t* acc, bool accumulate,
                       Prefetch ahead) {
    const auto product =
        std::array{multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>,
                   multiply_rows<5>}[static_cast<size_t>(rows - 1)];
    product(packed, w, w_stride, tiles_n, tiles_k, acc, accumulate, ahead);
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int8_avx2 =
    make_kernel<Tile>("matmul_sparse24_int8_avx2", Isa::kAvx2, 28);

}  // namespace lamina::matmul_sparse24
