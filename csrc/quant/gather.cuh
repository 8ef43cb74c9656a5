// Copies rows of activations into shared memory with their features in the order of a perm (act-order).
#pragma once

#include "device/device.h"
#include "quant/perm.h"

namespace lamina {

// Gathers the features perm[p], ..., perm[p + valid - 1] of `row` into 8 elements of 16 bits and fills the rest with
// zeros. A packed place without a feature (-1) becomes 0. The host cannot check a perm in GPU memory, so an index out
// of range becomes NaN (the pattern is NaN in f16 and in bf16).
LAMINA_DEVICE void gather_chunk(std::byte* to, const uint16_t* row, const Perm& perm, int64_t p,
                                int valid) {
  constexpr uint32_t kNan = 0x7fff;
  dev::U32x4 chunk{};
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if (e >= valid) continue;
    const int32_t feature = dev::load_global(perm.data + p + e);
    const uint32_t value = feature == -1 ? 0
                           : feature < 0 || feature >= perm.features
                               ? kNan
                               : dev::load_global(row + feature);
    chunk.x[e / 2] |= value << (16 * (e % 2));
  }
  dev::store_shared(reinterpret_cast<dev::U32x4*>(to), chunk);
}

}  // namespace lamina
