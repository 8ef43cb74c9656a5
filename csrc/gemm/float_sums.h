// How products in f32 add up: fused multiply-adds sum the products of a k chunk in order, then the k chunks are added in
// order. A split of k between k chunks therefore does not change the result.
#pragma once

#include <cstdint>

namespace lamina::gemm {

inline constexpr int64_t kChunkK = 1024;

}  // namespace lamina::gemm
