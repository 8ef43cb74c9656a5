// How products of int8 activations and int4 codes add up: the sum of a group is an exact integer, which is scaled and added
// to the f32 sum of its k chunk; then the k chunks are added in order.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "gemm/float_sums.h"
#include "gemm/problem.h"
#include "layout/int4.h"

namespace lamina::gemm {

// The sums of a group fit int32: 255 * 15 * 2^19 < 2^31.
inline constexpr int64_t kMostGroupK = int64_t{1} << 19;

// Input features of a k chunk: a multiple of the group and of a tile's k, the largest that fits kChunkK, or the
// smallest multiple if none fits.
constexpr int64_t chunk_k(int64_t group) {
  const int64_t least = std::lcm(group, int64_t{int4::kTileK});
  return std::max<int64_t>(kChunkK / least, 1) * least;
}
static_assert(chunk_k(16) == 1024 && chunk_k(48) == 960 && chunk_k(2000) == 8000);

// Adds one group to its k chunk. Unless has_zeros, every zero point is 8.
constexpr float add_group(int32_t acc, int32_t a_sum, bool has_zeros, float minus_zero, float scale,
                          float k_chunk) {
  const float x = has_zeros
                      ? std::fma(minus_zero, static_cast<float>(a_sum), static_cast<float>(acc))
                      : static_cast<float>(acc - kSymmetricZeroPoint * a_sum);
  return std::fma(x, scale, k_chunk);
}

}  // namespace lamina::gemm
