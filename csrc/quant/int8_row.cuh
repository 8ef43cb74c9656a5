// One row that one block quantises: the row's extremes, found with integer comparisons, shuffles and shared memory,
// and its grid.
#pragma once

#include <limits>

#include "block/reduce.cuh"
#include "device/device.h"
#include "quant/int8.h"

namespace lamina {

template <class In, int kThreads>
struct Int8Row {
  static constexpr int kWarps = kThreads / dev::kWarpLanes;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(In));
  static constexpr int kSmemBytes = 2 * kWarps * static_cast<int>(sizeof(int32_t));

  struct alignas(16) Chunk {
    In value[kChunk];
  };

  // Calls body(first column, count, values) for each of this thread's chunks of a row.
  template <class Body>
  LAMINA_DEVICE static void for_chunks(const In* x, int64_t k, const Body& body) {
    const bool is_aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    for (int64_t j = int64_t{dev::thread_index()} * kChunk; j < k; j += kThreads * kChunk) {
      const int count = k - j < kChunk ? static_cast<int>(k - j) : kChunk;
      Chunk chunk;
      if (is_aligned && count == kChunk) {
        chunk = dev::load_global(reinterpret_cast<const Chunk*>(x + j));
      } else {
#pragma unroll
        for (int e = 0; e < kChunk; ++e)
          chunk.value[e] = dev::load_global(x + j + (e < count ? e : 0));
      }
      body(j, count, chunk);
    }
  }

  // The extremes of a row; every thread gets them. smem: kSmemBytes; no thread may still be reading the old values.
  LAMINA_DEVICE static Range find_range(const In* x, int64_t k, std::byte* smem) {
    int32_t low = 0, high = 0;
    for_chunks(x, k, [&](int64_t, int count, const Chunk& chunk) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        const int32_t key = e < count ? order_key(to_bits(chunk.value[e])) : 0;
        low = std::min(low, key);
        high = std::max(high, key);
      }
    });
    extremes_of_block<kWarps>(low, high, reinterpret_cast<int32_t*>(smem));
    return {to_f32(from_bits<In>(order_key(low))), to_f32(from_bits<In>(order_key(high)))};
  }
};

// The grid of a row. A row with a NaN or an infinity has no int8 form (is_there is false): its values become 0, its
// scale NaN.
struct RowGrid {
  Grid grid;
  bool is_there;

  LAMINA_DEVICE Quantizer quantizer(bool symmetric) const {
    return {is_there ? grid : Grid{1.0f, 0}, symmetric};
  }
  // The scale and zero point to store.
  LAMINA_DEVICE Grid kept() const {
    return is_there ? grid : Grid{std::numeric_limits<float>::quiet_NaN(), 0};
  }
};

LAMINA_DEVICE RowGrid row_grid(Range range, bool symmetric) {
  return {dynamic_grid(range, symmetric), !range.has_nan_or_inf()};
}

}  // namespace lamina
