// The weights of the products on int8 and int4 codes: as operand a, 16 times the code minus 8, which is 0 for a symmetric
// zero point.
#pragma once

#include "device/sparse.h"
#include "gemm/cuda/group_end.cuh"
#include "ops/matmul_sparse24/cuda/run.h"
#include "ops/matmul_sparse24/cuda/weights.cuh"

namespace lamina::matmul_sparse24 {

template <bool kHasZeros>
struct Int4Int8Weights {
  static constexpr const char* kOp = "matmul_sparse24_int4_int8";
  static constexpr Codes kCodes = kHasZeros ? Codes::kSparseWithZeros : Codes::kSparse;
  static constexpr int kTileBytes = sparse24_tile::tile_bytes(4);
};

// Operand a of 16 rows x 64 k, and its metadata.
struct Int8Operand {
  uint32_t a[4], metadata;
};

// A code in the high half of a byte, with its highest bit flipped, is that byte: (q ^ 8) << 4 = 16 (q - 8) in int8.
LAMINA_DEVICE void unpack_codes(const dev::U32x2& codes, uint32_t (&a)[4]) {
  constexpr uint32_t kHigh = 0xf0f0f0f0, kEights = 0x80808080;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t word = dev::prmt(codes.x[half], 0, 0x3120);
    a[2 * half] = (word << 4 & kHigh) ^ kEights;
    a[2 * half + 1] = (word & kHigh) ^ kEights;
  }
}

// The metadata of 16-bit values as that of bytes: lanes lane and lane ^ 1 have the codes of 16 k of the rows lane / 4, low
// half, and lane / 4 + 8, high half. The even lane takes the low halves of both, the odd lane the high halves.
LAMINA_DEVICE uint32_t s8_metadata(uint32_t metadata) {
  const uint32_t other = dev::shuffle_xor(metadata, 1);
  return sparse24_tile::interleave_codes(
      dev::prmt(metadata, other, dev::lane() % 2 == 0 ? 0x5140 : 0x3726));
}

// Leaves the slices of a tile outside [begin, end) out: their codes become those of a weight 0. Ones likewise.
LAMINA_DEVICE void mask_slices(uint32_t (&a)[4], int begin, int end) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int first = i / 2 * 2;
    const uint32_t low = begin <= first && first < end ? 0x0000ffffu : 0u;
    const uint32_t high = begin <= first + 1 && first + 1 < end ? 0xffff0000u : 0u;
    a[i] &= low | high;
  }
}

}  // namespace lamina::matmul_sparse24
