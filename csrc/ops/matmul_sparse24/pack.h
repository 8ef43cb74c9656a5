// layout/sparse24.h, the reference order  <->  layout/sparse24_rows.h, for CPUs.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "base/status.h"
#include "ops/compress_sparse24/compress_sparse24.h"

namespace lamina::matmul_sparse24 {

using compress_sparse24::Sparse;

// A weight [n, k] whose kept values have `bits` bits each: 8, 16 or 32, or 4 for codes 0..15 in a byte each.
struct Shape {
  int64_t n, k;
  int bits;
};

// data: sparse24_rows::packed_bytes. A code that layout/sparse24.h does not have is an error, and so is a value beyond
// 15 where bits is 4.
Status pack(const Shape& shape, const Sparse& sparse, uint8_t* data, const Parallel& parallel);

// sums[g][j] = the sum of the int8 values of output feature j in group g, `group` input features of k.
void column_sums(const Shape& shape, const Sparse& sparse, int64_t group, int32_t* sums,
                 const Parallel& parallel);

// The inverse of pack: values [n, k / 2] and metadata [n, metadata_bytes(k)], contiguous.
void unpack(const Shape& shape, const uint8_t* data, void* values, uint8_t* metadata,
            const Parallel& parallel);

}  // namespace lamina::matmul_sparse24
