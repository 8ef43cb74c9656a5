// One row that one block quantises: the row's extremes, found with integer comparisons, shuffles and shared memory,
// and its values on the grid. A thread owns every kThreads-th chunk of 16 bytes of floats.
#pragma once

#include <algorithm>

#include "block/reduce.cuh"
#include "block/runs.cuh"
#include "device/device.h"
#include "quant/int8_rows.h"

namespace lamina {

template <class In, int kThreads>
struct Int8Row {
  static constexpr int kWarps = kThreads / dev::kWarpLanes;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(In));
  static constexpr int kSmemBytes = 2 * kWarps * static_cast<int>(sizeof(int32_t));

  using Chunk = Run<In, kChunk>;

  // Calls body(first column, count) for each of this thread's chunks of a row of k columns.
  template <class Body>
  LAMINA_DEVICE static void for_chunks(int64_t k, const Body& body) {
    for (int64_t j = int64_t{dev::thread_index()} * kChunk; j < k; j += kThreads * kChunk)
      body(j, k - j < kChunk ? static_cast<int>(k - j) : kChunk);
  }

  LAMINA_DEVICE static Chunk load(const In* from, int count) {
    const In* const sources[] = {from};
    Chunk chunks[1];
    load_runs(sources, count, chunks);
    return chunks[0];
  }

  // The extremes of a row; every thread gets them. values(first column, count) is a chunk of the row. smem: kSmemBytes;
  // no thread may still be reading the old values.
  template <class Values>
  LAMINA_DEVICE static Range find_range(int64_t k, const Values& values, std::byte* smem) {
    int32_t low = 0, high = 0;
    for_chunks(k, [&](int64_t j, int count) {
      const Chunk chunk = values(j, count);
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
  LAMINA_DEVICE static Range find_range(const In* x, int64_t k, std::byte* smem) {
    return find_range(k, [&](int64_t j, int count) { return load(x + j, count); }, smem);
  }

  // Stores row i of q, its scale and its zero point.
  template <class Values>
  LAMINA_DEVICE static void store(const RowGrid& found, int64_t k, const Values& values,
                                  const Int8Rows& to, int64_t i) {
    const Quantizer quantizer = found.quantizer(to.symmetric);
    int8_t* const q = to.q + i * k;
    for_chunks(k, [&](int64_t j, int count) {
      const Chunk chunk = values(j, count);
      Run<int8_t, kChunk> result;
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        result.value[e] = found.is_there ? quantizer(to_f32(chunk.value[e])) : int8_t{0};
      store_run(q + j, result, count);
    });
    if (dev::thread_index() != 0) return;
    const Grid grid = found.kept();
    dev::store_global(to.scale + i, grid.scale);
    if (!to.symmetric) dev::store_global(to.zero_point + i, static_cast<int8_t>(grid.zero_point));
  }

  // Quantises row i. values is called twice for each chunk. smem as in find_range.
  template <class Values>
  LAMINA_DEVICE static void quantize(int64_t k, const Values& values, const Int8Rows& to, int64_t i,
                                     std::byte* smem) {
    store(row_grid(find_range(k, values, smem), to.symmetric), k, values, to, i);
  }
};

}  // namespace lamina
