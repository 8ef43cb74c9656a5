// layout/sparse24.h, the reference order  <->  layout/sparse24_rows.h, for CPUs, and layout/sparse24_tile.h, for CUDA.
#pragma once

#include <cstdint>

#include "base/parallel.h"
#include "base/status.h"
#include "layout/sparse24_rows.h"
#include "layout/sparse24_tile.h"
#include "ops/compress_sparse24/compress_sparse24.h"

namespace lamina::matmul_sparse24 {

using compress_sparse24::Sparse;

// A packed order: [tiles_n(n)][tiles_k(k)][tile_bytes(bits)], of tiles of 16 output x 64 input features, in both.
struct Layout {
  const char* name;
  int most_bits;  // of a value
  int padding;    // the code of groups past n and past k
  sparse24::Place (*index_place)(int n, int group, int kept, int bits);
  sparse24::Place (*value_place)(int n, int group, int kept, int bits);
};
inline constexpr Layout kRowsLayout{sparse24_rows::kName, 32, 0, &sparse24_rows::index_place,
                                    &sparse24_rows::value_place};
inline constexpr Layout kTileLayout{sparse24_tile::kName, 16, sparse24::kEmptyCode,
                                    &sparse24_tile::index_place, &sparse24_tile::value_place};
static_assert(sparse24_rows::packed_bytes(70, 132, 8) == sparse24_tile::packed_bytes(70, 132, 8) &&
              sparse24_rows::packed_bytes(70, 132, 4) == sparse24_tile::packed_bytes(70, 132, 4) &&
              sparse24_rows::packed_bytes(70, 132, 16) == sparse24_tile::packed_bytes(70, 132, 16));

// A weight [n, k] whose kept values have `bits` bits each: 8, 16 or 32, or 4 for codes 0..15 in a byte each.
struct Shape {
  int64_t n, k;
  int bits;
};

// data: sparse24_rows::packed_bytes. A code that layout/sparse24.h does not have is an error, and so is a value beyond
// 15 where bits is 4.
Status pack(const Layout& layout, const Shape& shape, const Sparse& sparse, uint8_t* data,
            const Parallel& parallel);

// sums[g][j] = the sum of the int8 values of output feature j in group g, `group` input features of k.
void column_sums(const Shape& shape, const Sparse& sparse, int64_t group, int32_t* sums,
                 const Parallel& parallel);

// The inverse of pack: values [n, k / 2] and metadata [n, metadata_bytes(k)], contiguous.
void unpack(const Layout& layout, const Shape& shape, const uint8_t* data, void* values,
            uint8_t* metadata, const Parallel& parallel);

}  // namespace lamina::matmul_sparse24
