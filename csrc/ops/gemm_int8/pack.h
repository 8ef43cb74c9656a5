// int8 weight [n, k]  <->  layout/int8_tile.h, and the column sums that the epilogue needs.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "base/status.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

// w: n rows of k elements, `stride` elements apart. data: int8_tile::packed_bytes(n, k). sums: [n], or [groups, n]
// where the problem has groups.
Status pack(const int8_t* w, const Problem& problem, int64_t stride, int8_t* data, int32_t* sums,
            const Parallel& parallel);

// The inverse: w becomes n contiguous rows of k elements.
Status unpack(const int8_t* data, int64_t n, int64_t k, int8_t* w, const Parallel& parallel);

}  // namespace lamina::gemm_int8
