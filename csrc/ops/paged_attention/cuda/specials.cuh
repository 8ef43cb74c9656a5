// NaN and Inf values in blocks of columns that only some rows see. 0 * Inf is NaN, so a weight of 0 would not protect the
// other rows: the products use 0 for such a value, and add() adds the value to the rows that see it.
#pragma once

#include "ops/paged_attention/cuda/products.cuh"
#include "ops/paged_attention/cuda/rows.cuh"

namespace lamina::paged_attention {

template <class Shape>
struct Specials {
  using State = typename Shape::State;
  static constexpr int kChunks = kColumns * Shape::kRowChunks;

  // Whether the values of a block of columns may hold a special value that is not for all rows.
  LAMINA_DEVICE static bool may_matter(const Walk<Shape>& walk) {
    if constexpr (Shape::kElements == Elements::kInt8) return false;
    if (walk.token() >= 0) return true;
    const int32_t first = walk.first_column();
    const int32_t any_low = Shape::at(&Place::any_low), any_high = Shape::at(&Place::any_high);
    const int32_t low = first > any_low ? first : any_low;
    const int32_t high = any_high - first < kColumns ? any_high : first + kColumns;
    return low < high && (low < Shape::at(&Place::all_low) || high > Shape::at(&Place::all_high));
  }

  LAMINA_DEVICE static dev::U32x4* chunk(int stage, int i) {
    return reinterpret_cast<dev::U32x4*>(
        Shape::smem(stage + Shape::chunk_at(i / Shape::kRowChunks, i % Shape::kRowChunks)));
  }

  // Whether this thread finds one in its part of the stage.
  LAMINA_DEVICE static bool are_there(int stage) {
    uint32_t found = 0;
#pragma unroll 1
    for (int i = dev::thread_index(); i < kChunks; i += Shape::kThreads) {
      const auto words = dev::load_shared(chunk(stage, i));
#pragma unroll
      for (int w = 0; w < 4; ++w) found |= Products<Shape>::find_special(words.x[w]);
    }
    return found != 0;
  }

  // Makes them zeros.
  LAMINA_DEVICE static void clear(int stage) {
#pragma unroll 1
    for (int i = dev::thread_index(); i < kChunks; i += Shape::kThreads) {
      auto words = dev::load_shared(chunk(stage, i));
#pragma unroll
      for (int w = 0; w < 4; ++w) words.x[w] &= ~Products<Shape>::find_special(words.x[w]);
      dev::store_shared(chunk(stage, i), words);
    }
  }

  // The value of element `i` of a word if it is special, else 0.
  LAMINA_DEVICE static float special(uint32_t word, int i) {
    float value;
    if constexpr (Shape::kRingHasBytes) {
      value = to_f32(E4M3{static_cast<uint8_t>(word >> 8 * i)});
    } else {
      value = to_f32(typename Shape::W{static_cast<uint16_t>(word >> 16 * i)});
    }
    return (std::bit_cast<uint32_t>(value) & 0x7f800000u) == 0x7f800000u ? value : 0.0f;
  }

  // Adds the special values to the sums of the rows that see them. Infinity becomes NaN in a row where its weight is 0, as it
  // does in products: which rows share the tile changes no bit. A word has elements of two places in a tile or, of bytes, of
  // the same place in four tiles.
  LAMINA_DEVICE static void add(const KernelArgs& args, const Walk<Shape>& walk, int stage,
                                const typename Products<Shape>::Weights& weights, State& state) {
    constexpr int kWordTiles = Shape::kRingHasBytes ? 4 : 1,
                  kTileWords = Shape::kRingHasBytes ? 2 : 1;
    constexpr int kSize = Shape::kRingHasBytes ? 1 : 2;
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint64_t seen = TileRows<Shape>::seen(args, Shape::row_of(t, half), walk);
        uint64_t weightless = 0;
        if constexpr (!Shape::kIsQuantized)  // float8 has no infinity
          weightless = Products<Shape>::weightless(weights, t, half);
#pragma unroll 1
        for (int column = 0; column < kColumns; ++column) {
          if (!(seen >> column & 1)) continue;
          const float factor = weightless >> column & 1 ? 0.0f : 1.0f;
#pragma unroll
          for (int n = 0; n < Shape::kTilesElement; n += kWordTiles)
#pragma unroll
            for (int w = 0; w < kTileWords; ++w) {
              const int byte = Shape::element_of(n, w) * kSize;
              const int at = stage + Shape::chunk_at(column, byte / swizzle::kChunkBytes) +
                             byte % swizzle::kChunkBytes;
              const auto word = dev::load_shared(reinterpret_cast<uint32_t*>(Shape::smem(at)));
              if (Products<Shape>::find_special(word) == 0) continue;
#pragma unroll
              for (int i = 0; i < 4 / kSize; ++i) {
                float& sum = state.values[t][Shape::kRingHasBytes ? n + i : n]
                                         [half * 2 + (Shape::kRingHasBytes ? w : i)];
                sum = sum + special(word, i) * factor;
              }
            }
        }
      }
  }
};

}  // namespace lamina::paged_attention
