// gemm_int8 / avx2: exact for every int8 value at the rate of vpmaddubsw.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs of products in int16, where it
// saturates. Here the weights are the unsigned side (w + 128 <= 255), so a pair of activations is
// safe when its positive parts add up to at most 128 and its negative parts to at least -128: 255 *
// 128 < 2^15. A group of 4 k of a row that has an unsafe pair is split, a = (a >> 1) + rest, and both parts
// are safe. The groups of all rows are multiplied first, then the rests are added one by one. Few groups are split,
// because a quantiser scales activations to their maximum and most lie far below it (1.5 % of groups for a normal
// distribution). A block of k with more than kMaxSplits splits for each row and tile is widened to int16 and multiplied
// with vpmaddwd, which cannot overflow.
//
// Ports  split    per 32 MACs vpmaddubsw, vpmaddwd by ones, vpaddd: 3 vector uops, 2 multiplies
//        widened  per 32 MACs 2 vpmaddwd and 2 vpaddd, and vpmovsxbw for the weights: 4 and more
// Tile   5 rows x 16 columns = 10 accumulators + 2 weights + row + product + ones of 16 registers;
//        one row x 64 columns = 8 accumulators, to read four streams of weights
#include <immintrin.h>

#include <array>

#include "base/unroll.h"
#include "ops/gemm_int8/cpu/dense.h"

namespace lamina::gemm_int8 {
namespace {

constexpr int kRowsMost = 5;
constexpr int kGroupBytes = int8_tile::kTileN * int8_tile::kGroupK;

// Break-even: a rest is 11 uops, widening costs 1.2 uops more in each of a row's 32 products.
constexpr int kMaxSplits = 4;

// A packed block of up to kBlockTilesK tiles: this header, then the groups [16 tiles][rows][4], as int16 if the block
// is widened; else as int8, followed by the rests.
struct alignas(64) Header {
  bool widened;
  int32_t rests;
  int32_t row_sum[kRowsMost];  // sums of a: sums of products are 128 * row_sum too large
};
static_assert(sizeof(Header) == 64);

struct Rest {
  int16_t row;
  int16_t at;  // bytes from the block's weights to the weights of the group
  int8_t a[int8_tile::kGroupK];
};
static_assert(kBlockTilesK * int8_tile::kTileBytes <= INT16_MAX);

constexpr int64_t rests_at(int rows, int64_t tiles) {
  return static_cast<int64_t>(sizeof(Header)) + tiles * int8_tile::kTileK * rows;
}

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

void store(int32_t* at, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), v); }

int32_t sum_lanes(__m256i v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_srli_si128(four, 8));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_srli_si128(two, 4)));
}

// Bit g of the result: group g of the 64 activations has an unsafe pair.
uint32_t unsafe_groups(const int8_t* a) {
  const __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi8(1),
                limit = _mm256_set1_epi16(128);
  uint32_t groups = 0;
  for (int half = 0; half < 2; ++half) {
    const __m256i v = load(a + 32 * half);
    const __m256i above = _mm256_maddubs_epi16(ones, _mm256_max_epi8(v, zero));
    const __m256i below =
        _mm256_sub_epi16(zero, _mm256_maddubs_epi16(ones, _mm256_min_epi8(v, zero)));
    const __m256i pairs = _mm256_cmpgt_epi16(_mm256_max_epi16(above, below), limit);
    // Two pairs to a 32-bit group: a group's lane is non-zero if either is unsafe.
    const __m256i safe = _mm256_cmpeq_epi32(pairs, zero);
    groups |= (~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(safe))) & 0xffu)
              << (8 * half);
  }
  return groups;
}

struct Tile {
  using Session = NoSession;
  static constexpr int kTileM = kRowsMost, kRowStep = 1;
  static constexpr int kTileN = 4 * int8_tile::kTileN;
  static constexpr int kOffset = 0;
  // A block of up to 32 rows stays in L1 beside the weights of 16 columns.
  static constexpr int strip(int64_t rows) { return rows <= 32 ? kTileN : int8_tile::kTileN; }
  static constexpr int tiles_at_once(int64_t rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
  // Each tile has room for a header, because a block may be one tile.
  static constexpr int packed_bytes(int rows) {
    return static_cast<int>(sizeof(Header)) +
           rows * int8_tile::kTileK * static_cast<int>(sizeof(int16_t));
  }
  using Block64 = int8_t[kBlockTilesK][kTileM][int8_tile::kTileK];
  using Unsafe = uint32_t[kBlockTilesK][kTileM];  // bits: see unsafe_groups

  static void pack_widened(const Block64& a, int rows, int64_t tiles, int8_t* out) {
    for (int64_t t = 0; t < tiles; ++t)
      for (int r = 0; r < rows; ++r)
        for (int g = 0; g < int8_tile::kGroups; ++g) {
          int32_t group;
          std::memcpy(&group, a[t][r] + g * int8_tile::kGroupK, sizeof group);
          _mm_storel_epi64(
              reinterpret_cast<__m128i*>(out + ((t * int8_tile::kGroups + g) * rows + r) * 8),
              _mm_cvtepi8_epi16(_mm_cvtsi32_si128(group)));
        }
  }

  static void pack_split(const Block64& a, int rows, int64_t tiles, const Unsafe& unsafe,
                         int8_t* packed) {
    Header& header = *reinterpret_cast<Header*>(packed);
    int8_t* const groups = packed + sizeof(Header);
    Rest* rest = reinterpret_cast<Rest*>(packed + rests_at(rows, tiles));
    for (int64_t t = 0; t < tiles; ++t)
      for (int r = 0; r < rows; ++r) {
        for (int g = 0; g < int8_tile::kGroups; ++g)
          std::memcpy(groups + ((t * int8_tile::kGroups + g) * rows + r) * int8_tile::kGroupK,
                      a[t][r] + g * int8_tile::kGroupK, int8_tile::kGroupK);
        header.rests += std::popcount(unsafe[t][r]);
        for (uint32_t left = unsafe[t][r]; left != 0; left &= left - 1, ++rest) {
          const int g = std::countr_zero(left);
          int8_t* const group =
              groups + ((t * int8_tile::kGroups + g) * rows + r) * int8_tile::kGroupK;
          rest->row = static_cast<int16_t>(r);
          rest->at = static_cast<int16_t>(t * int8_tile::kTileBytes + g * kGroupBytes);
          for (int i = 0; i < int8_tile::kGroupK; ++i) {
            rest->a[i] = static_cast<int8_t>(group[i] - (group[i] >> 1));
            group[i] = static_cast<int8_t>(group[i] >> 1);
          }
        }
      }
  }

  static void pack_block(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    const __m256i ones = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    const int64_t tiles = int8_tile::tiles_k(k);
    alignas(32) Block64 block = {};
    Unsafe unsafe = {};
    int unsafe_count = 0;
    Header& header = *reinterpret_cast<Header*>(packed);
    header = {};
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * int8_tile::kTileK;
      for (int r = 0; r < rows; ++r) {
        int8_t* const row = block[t][r];
        std::memcpy(row, a + r * a_stride + first,
                    static_cast<size_t>(std::min<int64_t>(int8_tile::kTileK, k - first)));
        unsafe[t][r] = unsafe_groups(row);
        unsafe_count += std::popcount(unsafe[t][r]);
        const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(ones, load(row)),
                                               _mm256_maddubs_epi16(ones, load(row + 32)));
        header.row_sum[r] += sum_lanes(_mm256_madd_epi16(pairs, ones16));
      }
    }
    header.widened = unsafe_count > kMaxSplits * rows * tiles;
    if (header.widened) {
      pack_widened(block, rows, tiles, packed + sizeof(Header));
    } else {
      pack_split(block, rows, tiles, unsafe, packed);
    }
  }

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    for (int64_t p = 0; p < k; p += kBlockK, packed += kBlockTilesK * packed_bytes(rows))
      pack_block(a + p, a_stride, rows, std::min(kBlockK, k - p), packed);
  }

  // Calls body(packed block, its weights, its tiles) for every block. multiply() starts at the first tile of a block.
  template <int kRows, class Body>
  LAMINA_INLINE static void for_blocks(const int8_t* packed, const int8_t* w, int64_t tiles_k,
                                       const Body& body) {
    for (int64_t t = 0; t < tiles_k; t += kBlockTilesK)
      body(packed + t * packed_bytes(kRows), w + t * int8_tile::kTileBytes,
           std::min(kBlockTilesK, tiles_k - t));
  }

  // The products of 8 columns with a group of 4 k of a row.
  LAMINA_INLINE static __m256i product(const int8_t* weights, __m256i row) {
    const __m256i biased = _mm256_xor_si256(load(weights), _mm256_set1_epi8(-128));
    return _mm256_madd_epi16(_mm256_maddubs_epi16(biased, row), _mm256_set1_epi16(1));
  }

  LAMINA_INLINE static __m256i broadcast(const int8_t* group) {
    int32_t four;
    std::memcpy(&four, group, sizeof four);
    return _mm256_set1_epi32(four);
  }

  // acc (+)= the products of the blocks that are not widened; each lane is one output.
  template <int kRows, int kTiles>
  static void multiply_split(const int8_t* packed, const int8_t* w, int64_t w_stride,
                             int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch ahead) {
    constexpr int kVectors = 2 * kTiles;
    __m256i sum[kRows][kVectors];
    int32_t row_sum[kRows] = {};
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<kVectors>([&](auto v) LAMINA_INLINE {
        sum[i][v] = accumulate ? load(acc + i * kTileN + v * 8) : _mm256_setzero_si256();
      });
    });
    for_blocks<kRows>(
        packed, w, tiles_k,
        [&](const int8_t* block, const int8_t* weights, int64_t tiles) LAMINA_INLINE {
          const Header& header = *reinterpret_cast<const Header*>(block);
          if (header.widened) return;
          const int8_t* a = block + sizeof(Header);
          for (int64_t g = 0; g < tiles * int8_tile::kGroups; ++g, weights += kGroupBytes) {
            ahead.pass<kTiles>(1, w_stride);
            unroll<kRows>([&](auto i) LAMINA_INLINE {
              const __m256i row = broadcast(a + i * int8_tile::kGroupK);
              unroll<kVectors>([&](auto v) LAMINA_INLINE {
                sum[i][v] = in_order(_mm256_add_epi32(
                    sum[i][v], product(weights + v / 2 * w_stride + v % 2 * 32, row)));
              });
            });
            a += kRows * int8_tile::kGroupK;
          }
          unroll<kRows>([&](auto i) LAMINA_INLINE { row_sum[i] += header.row_sum[i]; });
        });
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      const __m256i offset = _mm256_set1_epi32(128 * row_sum[i]);
      unroll<kVectors>([&](auto v) LAMINA_INLINE {
        store(acc + i * kTileN + v * 8, _mm256_sub_epi32(sum[i][v], offset));
      });
    });
  }

  // acc += the products of the rests with 16 columns. Rests are few and in any row, so the sums stay in memory.
  template <int kRows>
  static void add_rests(const int8_t* packed, const int8_t* w, int64_t tiles_k, int32_t* acc) {
    const auto add_block = [&](const int8_t* block, const int8_t* weights, int64_t tiles) {
      const Rest* rest = reinterpret_cast<const Rest*>(block + rests_at(kRows, tiles));
      const Rest* const end = rest + reinterpret_cast<const Header*>(block)->rests;
      for (; rest < end; ++rest) {
        const __m256i row = broadcast(rest->a);
        unroll<2>([&](auto v) LAMINA_INLINE {
          int32_t* const at = acc + rest->row * kTileN + v * 8;
          store(at, _mm256_add_epi32(load(at), product(weights + rest->at + v * 32, row)));
        });
      }
    };
    for_blocks<kRows>(packed, w, tiles_k, add_block);
  }

  // acc += the products of the widened blocks, 8 columns at a time. A pair of lanes holds the sums of one column over
  // k % 4 in {0, 1} and in {2, 3}; the two sums are added at the end.
  template <int kRows>
  static void multiply_widened(const int8_t* packed, const int8_t* w, int64_t tiles_k,
                               int32_t* acc) {
    __m256i sum[kRows][2];
    unroll<kRows>([&](auto i) LAMINA_INLINE { sum[i][0] = sum[i][1] = _mm256_setzero_si256(); });
    for_blocks<kRows>(
        packed, w, tiles_k,
        [&](const int8_t* block, const int8_t* weights, int64_t tiles) LAMINA_INLINE {
          if (!reinterpret_cast<const Header*>(block)->widened) return;
          const int8_t* a = block + sizeof(Header);
          for (int64_t g = 0; g < tiles * int8_tile::kGroups; ++g, a += kRows * 8) {
            __m256i weight[2];
            unroll<2>([&](auto v) LAMINA_INLINE {
              weight[v] = _mm256_cvtepi8_epi16(
                  _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + g * kGroupBytes) + v));
            });
            unroll<kRows>([&](auto i) LAMINA_INLINE {
              long long four;
              std::memcpy(&four, a + i * 8, sizeof four);
              const __m256i row = _mm256_set1_epi64x(four);
              unroll<2>([&](auto v) LAMINA_INLINE {
                sum[i][v] =
                    in_order(_mm256_add_epi32(sum[i][v], _mm256_madd_epi16(row, weight[v])));
              });
            });
          }
        });
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      // vphaddd adds within 128-bit lanes: columns 0 1 4 5 | 2 3 6 7.
      const __m256i total = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[i][0], sum[i][1]), 0xd8);
      int32_t* const out = acc + i * kTileN;
      store(out, _mm256_add_epi32(load(out), total));
    });
  }

  template <int kRows>
  static void multiply_rows(const int8_t* packed, const int8_t* w, int64_t w_stride, int tiles_n,
                            int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch ahead) {
    constexpr int kTiles = tiles_at_once(kRows);
    if (tiles_n == kTiles) {
      multiply_split<kRows, kTiles>(packed, w, w_stride, tiles_k, acc, accumulate, ahead);
    } else {
      for (int t = 0; t < tiles_n; ++t)
        multiply_split<kRows, 1>(packed, w + t * w_stride, w_stride, tiles_k,
                                 acc + t * int8_tile::kTileN, accumulate,
                                 {ahead.at + t * w_stride, ahead.every});
    }
    bool widened = false;
    for_blocks<kRows>(packed, w, tiles_k, [&](const int8_t* block, const int8_t*, int64_t) {
      widened |= reinterpret_cast<const Header*>(block)->widened;
    });
    for (int t = 0; t < tiles_n; ++t, w += w_stride, acc += int8_tile::kTileN) {
      add_rests<kRows>(packed, w, tiles_k, acc);
      if (!widened) continue;
      multiply_widened<kRows>(packed, w, tiles_k, acc);
      multiply_widened<kRows>(packed, w + 32, tiles_k, acc + 8);
    }
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

static_assert(rests_at(1, 1) + kMaxSplits * static_cast<int64_t>(sizeof(Rest)) <=
                  Tile::packed_bytes(1),
              "rests take no more room than widened activations");

}  // namespace

extern constinit const CpuKernel gemm_int8_avx2 =
    make_kernel<Tile>("gemm_int8_avx2", Isa::kAvx2, 28);

}  // namespace lamina::gemm_int8
