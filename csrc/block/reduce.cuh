// Reductions over the threads of a block. Every thread gets the result.
#pragma once

#include <algorithm>

#include "device/device.h"

namespace lamina {

// Whether `value` is true in any thread. smem: kWarps words; no thread may still be reading their old values. sync: a
// barrier of the first kWarps warps, if they are not all of the block.
template <int kWarps>
LAMINA_DEVICE bool any_of_block(bool value, int32_t* smem, const auto& sync) {
  const bool of_warp = dev::any(value);
  if (dev::lane() == 0) dev::store_shared(smem + dev::warp(), of_warp ? 1 : 0);
  sync();
  int32_t any = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) any |= dev::load_shared(smem + w);
  return any != 0;
}
template <int kWarps>
LAMINA_DEVICE bool any_of_block(bool value, int32_t* smem) {
  return any_of_block<kWarps>(value, smem, [] { dev::block_sync(); });
}

// Replaces `low` by the block's smallest and `high` by its largest. smem: 2 * kWarps words; no thread may still be
// reading their old values.
template <int kWarps>
LAMINA_DEVICE void extremes_of_block(int32_t& low, int32_t& high, int32_t* smem) {
#pragma unroll
  for (int step = dev::kWarpLanes / 2; step > 0; step /= 2) {
    low = std::min(low, dev::shuffle_xor(low, step));
    high = std::max(high, dev::shuffle_xor(high, step));
  }
  int32_t* const highs = smem + kWarps;
  if (dev::lane() == 0) {
    dev::store_shared(smem + dev::warp(), low);
    dev::store_shared(highs + dev::warp(), high);
  }
  dev::block_sync();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    low = std::min(low, dev::load_shared(smem + w));
    high = std::max(high, dev::load_shared(highs + w));
  }
}

}  // namespace lamina
