// The weights of a strip and the record of a kernel, for all kernels of matmul_sparse24_int8. Each ISA compiles its own
// copy: gemm/cpu/int8_nest.h says why.
#pragma once

#include "gemm/cpu/int8_nest.h"
#include "layout/sparse24_rows.h"
#include "ops/matmul_sparse24/matmul_sparse24.h"

namespace lamina::matmul_sparse24 {
namespace {

inline constexpr int kSpanBytes = sparse24_rows::span_bytes(8),
                     kTileBytes = sparse24_rows::tile_bytes(8);
inline constexpr int kStepBytes = sparse24_rows::kTileN * sparse24_rows::kStepValues;
static_assert(kStepBytes == 64 && sparse24_rows::kIndexBytes == 64, "one zmm register each");

// Codes of int4 are prefetched this many bytes ahead, as in the dense product.
inline constexpr int64_t kCodesAhead = 2048;
inline constexpr int kCodeSpanBytes = sparse24_rows::span_bytes(4);
static_assert(kCodeSpanBytes == 3 * 64);

LAMINA_INLINE inline void prefetch_codes(const uint8_t* span, int64_t ahead = kCodesAhead) {
  for (int line = 0; line < kCodeSpanBytes; line += 64)
    __builtin_prefetch(span + ahead + line, 0, 2);
}

// Product with 2:4 weights.
template <class Product>
struct Sparse : Product {
  static constexpr int kWeightBytes = kTileBytes;
  static void with_weights(const Int8Params& p, int64_t n0, int64_t tiles_k, const auto& body) {
    body(WeightsOf<Sparse>{p.weight.data + n0 / sparse24_rows::kTileN * tiles_k * kWeightBytes});
  }
};

template <class Product>
constexpr CpuKernel make_kernel(const char* name, Isa isa, int macs_per_cycle) {
  using Tile = Sparse<Product>;
  return cpu_kernel<Int8Nest<Int8Params, Tile>, Tile, Int8Params>(name, isa, macs_per_cycle);
}

}  // namespace
}  // namespace lamina::matmul_sparse24
