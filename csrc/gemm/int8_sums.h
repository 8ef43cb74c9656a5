// The sums of products of int8 activations and int8 weights: how far they are exact, and how scales along k add them.
#pragma once

#include <cstdint>

namespace lamina::gemm {

// Integer accumulation stays in int32 up to this k: 255 * 128 * 65536 < 2^31. Beyond it, sums of
// 65536 products each are added in int64.
inline constexpr int64_t kMaxExactK = 65536;

inline constexpr int64_t kScaleGroup = 128;  // input features that share a scale
inline constexpr int64_t kChunkGroups = 8;   // groups of a k chunk

}  // namespace lamina::gemm
