// The sum of floats over the threads of a block. Every thread gets the result.
#pragma once

#include "device/device.h"

namespace lamina {

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
