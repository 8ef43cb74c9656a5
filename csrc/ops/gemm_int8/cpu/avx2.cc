// gemm_int8 / avx2: exact for every int8 value at the rate of vpmaddubsw.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs of products in int16, where it
// saturates. Here the weights are the unsigned side (w + 128 <= 255), so a pair of activations is
// safe when its positive parts add up to at most 128 and its negative parts to at least -128: 255 *
// 128 < 2^15. A group of 4 k in which a row of the panel has an unsafe pair is split a = (a >> 1) +
// rest, both of them safe, and multiplied twice. Few groups are: activations that a quantiser
// scaled to their maximum are mostly far below it (normal ones: 7 % of the groups of 5 rows). A
// tile with more than kMaxSplit such groups is widened to int16 and multiplied with vpmaddwd, which
// cannot overflow.
//
// Ports  split    per 32 MACs vpmaddubsw, vpmaddwd by ones, vpaddd: 3 vector uops, 2 of them
// multiplies
//        widened  per 32 MACs 2 vpmaddwd and 2 vpaddd, and vpmovsxbw for the weights: 4 and more
// Tile   5 rows x 16 columns = 10 accumulators + 2 weights + row + product + ones of 16 registers
#include <immintrin.h>

#include "base/unroll.h"
#include "ops/gemm_int8/cpu/body.h"

namespace lamina::gemm_int8 {
namespace {

constexpr int kRowsMost = 5;
constexpr int kGroupBytes = int8_tile::kTileN * int8_tile::kGroupK;

// Break-even of 3 uops for 16 + kMaxSplit groups against 4.2 for 16.
constexpr int kMaxSplit = 6;

// A packed tile: the header, then [16 groups][rows][4] of int16 if widened, else of int8, followed
// by [splits][rows][4] rests.
struct alignas(64) Header {
  bool widened;
  uint8_t splits;
  uint8_t split_group[kMaxSplit];
  int32_t row_sum[kRowsMost];  // takes 128 * sum of a off again
};
static_assert(sizeof(Header) == 64);

__m256i load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }

int32_t sum_lanes(__m256i v) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i two = _mm_add_epi32(four, _mm_srli_si128(four, 8));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_srli_si128(two, 4)));
}

// Bit g: group g of the 64 activations has an unsafe pair.
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
  static constexpr int kTileM = kRowsMost;
  static constexpr int kTileN = int8_tile::kTileN;
  static constexpr int kOffset = 0;
  static constexpr int packed_bytes(int rows) {
    return static_cast<int>(sizeof(Header)) +
           rows * int8_tile::kTileK * static_cast<int>(sizeof(int16_t));
  }

  static void pack_widened(const int8_t (*a)[int8_tile::kTileK], int rows, int8_t* out) {
    for (int r = 0; r < rows; ++r)
      for (int g = 0; g < int8_tile::kGroups; ++g) {
        int32_t group;
        std::memcpy(&group, a[r] + g * int8_tile::kGroupK, sizeof group);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + (g * rows + r) * 8),
                         _mm_cvtepi8_epi16(_mm_cvtsi32_si128(group)));
      }
  }

  static void pack_split(const int8_t (*a)[int8_tile::kTileK], int rows, uint32_t unsafe,
                         Header& header, int8_t* out) {
    const int group_bytes = rows * int8_tile::kGroupK;
    for (int r = 0; r < rows; ++r)
      for (int g = 0; g < int8_tile::kGroups; ++g)
        std::memcpy(out + g * group_bytes + r * int8_tile::kGroupK, a[r] + g * int8_tile::kGroupK,
                    int8_tile::kGroupK);
    int8_t* rest = out + int8_tile::kGroups * group_bytes;
    for (int g = 0; g < int8_tile::kGroups; ++g) {
      if (!(unsafe >> g & 1u)) continue;
      int8_t* const half = out + g * group_bytes;
      for (int i = 0; i < group_bytes; ++i, ++rest) {
        *rest = static_cast<int8_t>(half[i] - (half[i] >> 1));
        half[i] = static_cast<int8_t>(half[i] >> 1);
      }
      header.split_group[header.splits++] = static_cast<uint8_t>(g);
    }
  }

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    const __m256i ones = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
    for (int64_t p = 0; p < k; p += int8_tile::kTileK, packed += packed_bytes(rows)) {
      alignas(32) int8_t tile[kTileM][int8_tile::kTileK] = {};
      Header& header = *reinterpret_cast<Header*>(packed);
      header = {};
      uint32_t unsafe = 0;
      for (int r = 0; r < rows; ++r) {
        std::memcpy(tile[r], a + r * a_stride + p,
                    static_cast<size_t>(std::min<int64_t>(int8_tile::kTileK, k - p)));
        unsafe |= unsafe_groups(tile[r]);
        const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(ones, load(tile[r])),
                                               _mm256_maddubs_epi16(ones, load(tile[r] + 32)));
        header.row_sum[r] = sum_lanes(_mm256_madd_epi16(pairs, ones16));
      }
      header.widened = std::popcount(unsafe) > kMaxSplit;
      if (header.widened) {
        pack_widened(tile, rows, packed + sizeof(Header));
      } else {
        pack_split(tile, rows, unsafe, header, packed + sizeof(Header));
      }
    }
  }

  struct Rest {
    const int8_t* a;
    const int8_t* w;
  };
  // Tiles whose rests are multiplied together: a loop of its own for each tile's zero to six would
  // cost a misprediction a tile.
  static constexpr int kBatch = 16;

  // acc (+)= the tiles that are not widened; one lane an output.
  template <int kRows>
  static void multiply_split(const int8_t* packed, const int8_t* w, int64_t tiles_k, int32_t* acc,
                             bool accumulate) {
    const __m256i sign = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
    __m256i sum[kRows][2];
    int32_t row_sum[kRows] = {};
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      unroll<2>([&](auto v) LAMINA_INLINE {
        sum[i][v] = accumulate ? load(acc + i * kTileN + v * 8) : _mm256_setzero_si256();
      });
    });
    const auto add_group = [&](const int8_t* a, const int8_t* group) LAMINA_INLINE {
      __m256i weight[2];
      unroll<2>([&](auto v)
                    LAMINA_INLINE { weight[v] = _mm256_xor_si256(load(group + 32 * v), sign); });
      unroll<kRows>([&](auto i) LAMINA_INLINE {
        int32_t four;
        std::memcpy(&four, a + i * int8_tile::kGroupK, sizeof four);
        const __m256i row = _mm256_set1_epi32(four);
        unroll<2>([&](auto v) LAMINA_INLINE {
          const __m256i pairs = _mm256_maddubs_epi16(weight[v], row);
          sum[i][v] = in_order(_mm256_add_epi32(sum[i][v], _mm256_madd_epi16(pairs, ones)));
        });
      });
    };
    for (int64_t t = 0; t < tiles_k;) {
      Rest rests[kBatch * kMaxSplit + kMaxSplit];
      int count = 0;
      for (const int64_t end = std::min(t + kBatch, tiles_k); t < end; ++t) {
        const Header& header = *reinterpret_cast<const Header*>(packed);
        const int8_t* a = packed + sizeof(Header);
        const int8_t* const tile = w;
        packed += packed_bytes(kRows);
        w += int8_tile::kTileBytes;
        if (header.widened) continue;
        for (int g = 0; g < int8_tile::kGroups; ++g, a += kRows * int8_tile::kGroupK) {
          if constexpr (kRows <= 2)
            _mm_prefetch(reinterpret_cast<const char*>(tile + g * kGroupBytes) + 1024, _MM_HINT_T0);
          add_group(a, tile + g * kGroupBytes);
        }
        // Writes kMaxSplit entries and keeps `splits` of them: no branch to mispredict.
        for (int i = 0; i < kMaxSplit; ++i)
          rests[count + i] = {a + i * kRows * int8_tile::kGroupK,
                              tile + header.split_group[i] * kGroupBytes};
        count += header.splits;
        unroll<kRows>([&](auto i) LAMINA_INLINE { row_sum[i] += header.row_sum[i]; });
      }
      for (int i = 0; i < count; ++i) add_group(rests[i].a, rests[i].w);
    }
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      const __m256i offset = _mm256_set1_epi32(128 * row_sum[i]);
      unroll<2>([&](auto v) LAMINA_INLINE {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(acc + i * kTileN + v * 8),
                            _mm256_sub_epi32(sum[i][v], offset));
      });
    });
  }

  // acc += the widened tiles, 8 columns at a time. A lane pair holds one column's sums over k % 4
  // in {0, 1} and in {2, 3}; they are added at the end.
  template <int kRows>
  static void multiply_widened(const int8_t* packed, const int8_t* w, int64_t tiles_k,
                               int32_t* acc) {
    __m256i sum[kRows][2];
    unroll<kRows>([&](auto i) LAMINA_INLINE { sum[i][0] = sum[i][1] = _mm256_setzero_si256(); });
    for (int64_t t = 0; t < tiles_k;
         ++t, packed += packed_bytes(kRows), w += int8_tile::kTileBytes) {
      if (!reinterpret_cast<const Header*>(packed)->widened) continue;
      const int8_t* a = packed + sizeof(Header);
      for (int g = 0; g < int8_tile::kGroups; ++g, a += kRows * 8) {
        __m256i weight[2];
        unroll<2>([&](auto v) LAMINA_INLINE {
          weight[v] = _mm256_cvtepi8_epi16(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(w + g * kGroupBytes) + v));
        });
        unroll<kRows>([&](auto i) LAMINA_INLINE {
          long long four;
          std::memcpy(&four, a + i * 8, sizeof four);
          const __m256i row = _mm256_set1_epi64x(four);
          unroll<2>([&](auto v) LAMINA_INLINE {
            sum[i][v] = in_order(_mm256_add_epi32(sum[i][v], _mm256_madd_epi16(row, weight[v])));
          });
        });
      }
    }
    unroll<kRows>([&](auto i) LAMINA_INLINE {
      // vphaddd adds within 128-bit lanes: columns 0 1 4 5 | 2 3 6 7.
      const __m256i total = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum[i][0], sum[i][1]), 0xd8);
      __m256i* const out = reinterpret_cast<__m256i*>(acc + i * kTileN);
      _mm256_storeu_si256(out, _mm256_add_epi32(load(out), total));
    });
  }

  template <int kRows>
  static void multiply_rows(const int8_t* packed, const int8_t* w, int64_t tiles_k, int32_t* acc,
                            bool accumulate) {
    multiply_split<kRows>(packed, w, tiles_k, acc, accumulate);
    bool widened = false;
    for (int64_t t = 0; t < tiles_k; ++t)
      widened |= reinterpret_cast<const Header*>(packed + t * packed_bytes(kRows))->widened;
    if (!widened) return;
    multiply_widened<kRows>(packed, w, tiles_k, acc);
    multiply_widened<kRows>(packed, w + 32, tiles_k, acc + 8);
  }

  static void multiply(int rows, const int8_t* packed, const int8_t* w, int64_t, int,
                       int64_t tiles_k, int32_t* acc, bool accumulate) {
    switch (rows) {
      case 1:
        return multiply_rows<1>(packed, w, tiles_k, acc, accumulate);
      case 2:
        return multiply_rows<2>(packed, w, tiles_k, acc, accumulate);
      case 3:
        return multiply_rows<3>(packed, w, tiles_k, acc, accumulate);
      case 4:
        return multiply_rows<4>(packed, w, tiles_k, acc, accumulate);
      default:
        return multiply_rows<5>(packed, w, tiles_k, acc, accumulate);
    }
  }
};

}  // namespace

CpuKernel gemm_int8_avx2(int64_t min_m) {
  return make_kernel<Tile>("gemm_int8_avx2", Isa::kAvx2, min_m, 28);
}

}  // namespace lamina::gemm_int8
