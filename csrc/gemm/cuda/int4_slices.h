// The slices of k in which groups of int4 codes are counted.
#pragma once

#include "layout/int4.h"

namespace lamina::gemm {

inline constexpr int kSliceK = 16;                      // every group size is a multiple of it
inline constexpr int kSlices = int4::kTileK / kSliceK;  // slices of a tile

}  // namespace lamina::gemm
