// Rows of a whose features a perm picks, on their way into shared memory.
#pragma once

#include "device/device.h"
#include "quant/perm.h"

namespace lamina {

// The first `valid` of 8 elements of 16 bits and zeros: of `row`, the features that perm has from p on. What nothing
// claims is 0. The host cannot look at perm: a feature that there is not is a NaN, in f16 and in bf16.
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
