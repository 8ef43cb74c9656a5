// The products of a warp: queries times keys, and weights times values.
//
// Caches of one byte an element are widened in registers. A lane reads 16 consecutive bytes of a key, its operands of four
// slices. This permutes head_dim within each 64 elements, so queries get the same permutation. A lane reads
// values as words of four elements of four keys: within 32 elements, tile n of a result has elements n, n + 4, ..., and a
// lane holds eight consecutive elements in four tiles.
#pragma once

#include "ops/paged_attention/cuda/bytes.cuh"
#include "ops/paged_attention/cuda/shape.cuh"

namespace lamina::paged_attention {

template <class Shape>
struct Products {
  using T = typename Shape::T;
  using W = typename Shape::W;
  using State = typename Shape::State;
  static constexpr int kSlices = Shape::kDim / 16;  // of the sums over head_dim

  // The queries of the warp as operands a, of one slice or of all.
  struct Slice {
    uint32_t of[Shape::kTilesM][4];
  };
  struct Queries {
    Slice slice[Shape::kKeepsQueries ? kSlices : 1];
  };
  using Scores = float[Shape::kTilesM][Shape::kTilesColumn][4];
  // The weights of the warp as operands a, one for each 16 columns.
  using Weights = uint32_t[Shape::kTilesM][Shape::kTilesColumn / 2][4];

  // Operand a of 16 rows and columns 16 * slice to 16 * slice + 15 of rows of kCount elements at byte `rows`.
  template <int kCount>
  LAMINA_DEVICE static void load_operand(int rows, int tile, int slice, uint32_t (&a)[4]) {
    const int row = Shape::warp_m() * Shape::kWarpRows + tile * 16 + dev::lane() % 16;
    const int first = rows + Shape::template half_chunk_at<kCount>(row, dev::lane() / 16);
    dev::ldmatrix(a, Shape::smem(Shape::step(first, slice * 2)));
  }

  // The slices from `slice` on.
  template <size_t kCount>
  LAMINA_DEVICE static void load_queries(int slice, Slice (&a)[kCount]) {
    if constexpr (Shape::kRingHasBytes) {
#pragma unroll
      for (int s = 0; s < static_cast<int>(kCount); s += 2)
        load_permuted_queries(slice + s, a[s], a[s + 1]);
    } else {
#pragma unroll
      for (int s = 0; s < static_cast<int>(kCount); ++s)
#pragma unroll
        for (int t = 0; t < Shape::kTilesM; ++t)
          load_operand<Shape::kDim>(Shape::kQueriesAt, t, slice + s, a[s].of[t]);
    }
  }
  LAMINA_DEVICE static void load_queries(Queries& queries) {
    if constexpr (Shape::kKeepsQueries) load_queries(0, queries.slice);
  }
  template <size_t kCount>
  LAMINA_DEVICE static void take_queries(const Queries& queries, int slice, Slice (&a)[kCount]) {
    if constexpr (Shape::kKeepsQueries) {
#pragma unroll
      for (int s = 0; s < static_cast<int>(kCount); ++s) a[s] = queries.slice[slice + s];
    } else {
      load_queries(slice, a);
    }
  }

  // A lane's operands of two slices are in a chunk of each of two rows, of its two chunks of 64 elements. `half` is that of
  // the rows or, once the queries are permuted, of the slices.
  LAMINA_DEVICE static dev::U32x4* query_chunk(int pair, int tile, int half) {
    const int first = Shape::kQueriesAt + Shape::template half_chunk_at<Shape::kDim>(
                                              Shape::row_of(tile, half), dev::lane() % 4 * 2);
    return reinterpret_cast<dev::U32x4*>(Shape::smem(Shape::step(first, pair / 2 * 8 + pair % 2)));
  }

  // Puts the operands of each slice into one chunk. The warps of the same rows share the work; a barrier must follow.
  LAMINA_DEVICE static void permute_queries() {
#pragma unroll 1
    for (int pair = Shape::warp_n(); pair < kSlices / 2; pair += Shape::kWarpsN)
#pragma unroll
      for (int t = 0; t < Shape::kTilesM; ++t) {
        const auto low = dev::load_shared(query_chunk(pair, t, 0));
        const auto high = dev::load_shared(query_chunk(pair, t, 1));
        dev::store_shared(query_chunk(pair, t, 0), {{low.x[0], high.x[0], low.x[1], high.x[1]}});
        dev::store_shared(query_chunk(pair, t, 1), {{low.x[2], high.x[2], low.x[3], high.x[3]}});
      }
  }

  // Two slices, the first of them even.
  LAMINA_DEVICE static void load_permuted_queries(int slice, Slice& even, Slice& odd) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t) {
      const auto low = dev::load_shared(query_chunk(slice / 2, t, 0));
      const auto high = dev::load_shared(query_chunk(slice / 2, t, 1));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        even.of[t][i] = low.x[i];
        odd.of[t][i] = high.x[i];
      }
    }
  }

  // scores = queries * keys^T, summed in the order of head_dim.
  LAMINA_DEVICE static void multiply_keys(int stage, const Queries& queries, Scores& scores) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int n = 0; n < Shape::kTilesColumn; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[t][n][e] = 0.0f;
    if constexpr (Shape::kRingHasBytes) {
      multiply_bytes(stage, queries, scores);
    } else {
      multiply_halves(stage, queries, scores);
    }
  }

  LAMINA_DEVICE static void multiply_bytes(int stage, const Queries& queries, Scores& scores) {
    const int key = Shape::warp_n() * (kColumns / Shape::kWarpsN) + dev::lane() / 4;
    const int first = stage + Shape::chunk_at(key, dev::lane() % 4);
#pragma unroll
    for (int s = 0; s < kSlices; s += 4) {
      Slice a[4];
      take_queries(queries, s, a);
#pragma unroll
      for (int n = 0; n < Shape::kTilesColumn; ++n) {
        const auto* const from = reinterpret_cast<const dev::U32x4*>(
            Shape::smem(Shape::step(first, s) + n * 8 * Shape::kRowBytes));
        const dev::U32x4 bytes = dev::load_shared(from);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          uint32_t b[2];
          widen<Shape::kElements, T>(bytes.x[w], b);
#pragma unroll
          for (int t = 0; t < Shape::kTilesM; ++t)
            Half<T>::multiply(scores[t][n], a[w].of[t], b[0], b[1]);
        }
      }
    }
  }

  LAMINA_DEVICE static void multiply_halves(int stage, const Queries& queries, Scores& scores) {
    const int key =
        Shape::warp_n() * (kColumns / Shape::kWarpsN) + dev::lane() / 16 * 8 + dev::lane() % 8;
    const int first = stage + Shape::chunk_at(key, dev::lane() / 8 % 2);
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      Slice a[1];
      take_queries(queries, s, a);
#pragma unroll
      for (int n = 0; n < Shape::kTilesColumn; n += 2) {
        uint32_t b[4];
        dev::ldmatrix(b, Shape::smem(Shape::step(first, s * 2) + n * 8 * Shape::kRowBytes));
#pragma unroll
        for (int t = 0; t < Shape::kTilesM; ++t) {
          Half<T>::multiply(scores[t][n], a[0].of[t], b[0], b[1]);
          Half<T>::multiply(scores[t][n + 1], a[0].of[t], b[2], b[3]);
        }
      }
    }
  }

  // Where the weights of other warps are needed they are exchanged in shared memory.
  LAMINA_DEVICE static void store_weights(const Weights& weights, int rows) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int n = 0; n < Shape::kTilesColumn; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = Shape::row_of(t, half);
          const int first = rows + Shape::template half_chunk_at<kColumns>(
                                       row, Shape::warp_n() * Shape::kTilesColumn);
          auto* const to = reinterpret_cast<uint32_t*>(Shape::smem(Shape::step(first, n)));
          dev::store_shared(to + dev::lane() % 4, weights[t][n / 2][n % 2 * 2 + half]);
        }
  }

  // The columns of a block whose weight is 0 in a row of the tile, as bits. All lanes of a warp call it; the four lanes
  // that share the row have a quarter of its weights each.
  LAMINA_DEVICE static uint64_t weightless(const Weights& weights, int tile, int half) {
    uint32_t zeros[kColumns / 32] = {};
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
      uint32_t pair;
      if constexpr (Shape::kWarpsN > 1) {
        const int chunk = Shape::kWeightsAt +
                          Shape::template half_chunk_at<kColumns>(Shape::row_of(tile, half), n);
        pair = dev::load_shared(reinterpret_cast<const uint32_t*>(Shape::smem(chunk)) +
                                dev::lane() % 4);
      } else {
        pair = weights[tile][n / 2][n % 2 * 2 + half];
      }
      const uint32_t bits = ((pair & 0x7fffu) == 0 ? 1 : 0) + ((pair & 0x7fff0000u) == 0 ? 2 : 0);
      zeros[n / 4] |= bits << (n % 4 * 8 + dev::lane() % 4 * 2);
    }
#pragma unroll
    for (uint32_t& word : zeros) {
      word |= dev::shuffle_xor(word, 1);
      word |= dev::shuffle_xor(word, 2);
    }
    static_assert(kColumns == 64);
    return zeros[0] | static_cast<uint64_t>(zeros[1]) << 32;
  }

  // The weights of slice s of 16 columns, of all warps. scaled: the second weights in shared memory.
  LAMINA_DEVICE static void load_weights(const Weights& weights, int s, bool scaled, Slice& a) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t) {
      if constexpr (Shape::kWarpsN > 1) {
        load_operand<kColumns>(Shape::kWeightsAt + (scaled ? Shape::kWeightBytes : 0), t, s,
                               a.of[t]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) a.of[t][i] = weights[t][s][i];
      }
    }
  }

  // All bits of each element of a word of values that is NaN or infinite.
  LAMINA_DEVICE static uint32_t find_special(uint32_t word) {
    if constexpr (Shape::kRingHasBytes) {
      const uint32_t is_nan = ((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
      return is_nan | (is_nan - (is_nan >> 7));
    } else {
      constexpr uint32_t kExponent = std::is_same_v<typename Shape::W, F16> ? 0x7c00u : 0x7f80u;
      return ((word & kExponent) == kExponent ? 0xffffu : 0u) |
             ((word >> 16 & kExponent) == kExponent ? 0xffff0000u : 0u);
    }
  }

  // state += scaled * values, and the sums of the weights, in the order of columns. has_scales: whether the weights that
  // multiply values, `scaled`, are others than those of the sums. has_specials: NaN and infinite values count as 0.
  LAMINA_DEVICE static void multiply_values(int stage, const Weights& weights,
                                            const Weights& scaled, bool has_scales,
                                            bool has_specials, State& state) {
#pragma unroll
    for (int s = 0; s < kColumns / 16; ++s) {
      Slice a;
      load_weights(weights, s, false, a);
#pragma unroll
      for (int t = 0; t < Shape::kTilesM; ++t)
        Half<W>::multiply(state.weights[t], a.of[t], Half<W>::kOnes, Half<W>::kOnes);
      if constexpr (Shape::kRingHasBytes) {
        if (has_scales) load_weights(scaled, s, true, a);
        add_bytes(stage, s, a, has_specials, state);
      } else {
        add_halves(stage, s, a, has_specials, state);
      }
    }
  }

  LAMINA_DEVICE static void add_halves(int stage, int s, const Slice& a, bool has_specials,
                                       State& state) {
    constexpr int kTiles = Shape::kTilesElement;
    const int row = dev::lane() / 8 % 2 * 8 + dev::lane() % 8;
    const int chunk = Shape::warp_n() * kTiles + dev::lane() / 16;
    const int first = stage + s * 16 * Shape::kRowBytes + Shape::chunk_at(row, chunk);
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      uint32_t b[4];
      // The chunks of a warp begin at a multiple of kTiles.
      constexpr bool kHasSteps = kTiles % 8 == 0 || 8 % kTiles == 0;
      dev::ldmatrix_trans(b, Shape::smem(kHasSteps ? Shape::step(first, n)
                                                   : stage + s * 16 * Shape::kRowBytes +
                                                         Shape::chunk_at(row, chunk + n)));
      if (has_specials)
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] &= ~find_special(b[i]);
#pragma unroll
      for (int t = 0; t < Shape::kTilesM; ++t) {
        Half<W>::multiply(state.values[t][n], a.of[t], b[0], b[1]);
        Half<W>::multiply(state.values[t][n + 1], a.of[t], b[2], b[3]);
      }
    }
  }

  LAMINA_DEVICE static void add_bytes(int stage, int s, const Slice& a, bool has_specials,
                                      State& state) {
    constexpr int kWarpChunks = Shape::kTilesElement / 2;
    static_assert(kWarpChunks % 8 == 0 || 8 % kWarpChunks == 0);
    const int chunk = Shape::warp_n() * kWarpChunks + dev::lane() / 16;
    const int word = stage + s * 16 * Shape::kRowBytes + dev::lane() / 4 % 4 * 4;
    int first[2];
#pragma unroll
    for (int key = 0; key < 2; ++key)
      first[key] = word + Shape::chunk_at(dev::lane() % 4 * 2 + key, chunk);
#pragma unroll
    for (int n = 0; n < Shape::kTilesElement; n += 4) {
      uint32_t b[4][2];  // [tile][operand]
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t of_key[2];
#pragma unroll
        for (int key = 0; key < 2; ++key)
          of_key[key] = dev::load_shared(reinterpret_cast<const uint32_t*>(
              Shape::smem(Shape::step(first[key], n / 2) + i * 8 * Shape::kRowBytes)));
        if (Shape::kElements == Elements::kE4M3 && has_specials)
#pragma unroll
          for (int key = 0; key < 2; ++key) of_key[key] &= ~find_special(of_key[key]);
        uint32_t low[2], high[2];
        widen<Shape::kElements, W>(dev::prmt(of_key[0], of_key[1], 0x5140u), low);
        widen<Shape::kElements, W>(dev::prmt(of_key[0], of_key[1], 0x7362u), high);
        b[0][i] = low[0];
        b[1][i] = low[1];
        b[2][i] = high[0];
        b[3][i] = high[1];
      }
#pragma unroll
      for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
        for (int tile = 0; tile < 4; ++tile)
          Half<W>::multiply(state.values[t][n + tile], a.of[t], b[tile][0], b[tile][1]);
    }
  }
};

}  // namespace lamina::paged_attention
