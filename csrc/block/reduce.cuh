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

// The sum of the kCount values of every thread. Value e is added over the lanes of a warp and then over the warps, and
// the results over e. Each of these sums halves its terms again and again: term a takes term a + half. smem:
// kWarps * kCount words; no thread may still be reading their old values.
template <int kWarps, int kCount>
LAMINA_DEVICE float sum_of_block(const float (&values)[kCount], float* smem) {
  constexpr int kSharers = dev::kWarpLanes / kCount;  // lanes that end with the same e
  float sums[kCount];
#pragma unroll
  for (int e = 0; e < kCount; ++e) sums[e] = values[e];
  // Each step exchanges half of the sums with another lane, so a lane has one sum left after log2(kCount) steps.
#pragma unroll
  for (int kept = kCount / 2, step = dev::kWarpLanes / 2; kept > 0; kept /= 2, step /= 2) {
    const bool is_upper = (dev::lane() & step) != 0;
#pragma unroll
    for (int e = 0; e < kept; ++e) {
      const float given = is_upper ? sums[e] : sums[e + kept];
      sums[e] = (is_upper ? sums[e + kept] : sums[e]) + dev::shuffle_xor(given, step);
    }
  }
#pragma unroll
  for (int step = kSharers / 2; step > 0; step /= 2) sums[0] += dev::shuffle_xor(sums[0], step);
  if (dev::lane() % kSharers == 0)
    dev::store_shared(smem + dev::warp() * kCount + dev::lane() / kSharers, sums[0]);
  dev::block_sync();
  float parts[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    parts[w] = dev::load_shared(smem + w * kCount + dev::lane() % kCount);
#pragma unroll
  for (int half = kWarps / 2; half > 0; half /= 2)
#pragma unroll
    for (int w = 0; w < half; ++w) parts[w] += parts[w + half];
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) parts[0] += dev::shuffle_xor(parts[0], half);
  return parts[0];
}

}  // namespace lamina
