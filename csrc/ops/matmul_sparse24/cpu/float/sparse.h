// Lines of kept weights, the weights of a strip and the records of kernels, for all kernels of matmul_sparse24 and
// matmul_sparse24_int4. Each ISA compiles its own copy: gemm/cpu/int8_nest.h says why.
//
// A line is 16 input features, 8 kept weights, of 16 columns. In L1 the nest has for each kept weight 16 weights in f32
// and 16 indices of activations in int32, of which the low two bits count.
#pragma once

#include "gemm/cpu/float_nest.h"
#include "layout/sparse24_rows.h"
#include "ops/matmul_sparse24/matmul_sparse24.h"

namespace lamina::matmul_sparse24 {
namespace {

inline constexpr int kTileN = sparse24_rows::kTileN, kGroupK = sparse24_rows::kGroupK;
inline constexpr int kLineK = 16, kKept = kLineK / 2;
static_assert(kFloatTileN == kTileN && kFloatTileK == sparse24_rows::kTileK);

// A line of a tile with values of kBits bits. The index of kept weight i is at bit
// `shift` + index_shift(i) of a column's 32 bits of indices.
template <int kBits>
struct Line {
  const uint8_t *indices, *values;
  int shift;
};

template <int kBits>
LAMINA_INLINE inline Line<kBits> line_at(const uint8_t* tile, int64_t k) {
  const int64_t half = k / kLineK % 2;
  const uint8_t* const span = tile + k / sparse24_rows::kSpanK * sparse24_rows::span_bytes(kBits);
  return {span, span + sparse24_rows::kIndexBytes + half * (kTileN * kKept * kBits / 8),
          static_cast<int>(half) * 4};
}

// Kept weight i = 0..7 of a line is value i % 4 of step i / 4.
constexpr int index_shift(int i) { return i % 4 * 8 + i / 4 * 2; }
constexpr int code_shift(int i) { return i % 4 * 8 + i / 4 * 4; }  // in a column's 32 bits of int4

// The forms of kept weights.
enum class Value { kInt4, kF16, kBF16, kF32 };
constexpr int bits_of(Value value) {
  return value == Value::kInt4 ? 4 : value == Value::kF32 ? 32 : 16;
}

// Product<kValue> with 2:4 weights.
template <template <Value> class Product, Value kValue>
struct Sparse : Product<kValue> {
  static constexpr int kWeightBytes = sparse24_rows::tile_bytes(bits_of(kValue));
  static constexpr int kStreamBytes = kWeightBytes * kLineK / kFloatTileK;
};

template <template <Value> class Product, Value kValue>
struct SparseTile : Product<kValue> {
  static constexpr int kLineK = matmul_sparse24::kLineK, kPackK = kGroupK;
  static constexpr bool kHasScales = kValue == Value::kInt4;

  template <Value kOf>
  static WeightsOf<Sparse<Product, kOf>> weights(const auto& p, int64_t n0) {
    const int64_t tiles_k = sparse24_rows::tiles_k(p.problem.k);
    return {p.weight.data + n0 / kTileN * tiles_k * Sparse<Product, kOf>::kWeightBytes};
  }
  static void with_weights(const Int4Params& p, int64_t n0, const auto& body) {
    body(weights<Value::kInt4>(p, n0));
  }
  static void with_weights(const FloatParams& p, int64_t n0, const auto& body) {
    if (p.a_dtype == DType::kF16) body(weights<Value::kF16>(p, n0));
    if (p.a_dtype == DType::kBF16) body(weights<Value::kBF16>(p, n0));
    if (p.a_dtype == DType::kF32) body(weights<Value::kF32>(p, n0));
  }
};

template <template <Value> class Product>
constexpr CpuKernel make_int4_kernel(const char* name, Isa isa, int macs_per_cycle) {
  using Tile = SparseTile<Product, Value::kInt4>;
  return float_kernel<Int4Params, Tile>(name, isa, macs_per_cycle);
}

template <template <Value> class Product>
constexpr CpuKernel make_float_kernel(const char* name, Isa isa, int macs_per_cycle) {
  using Tile = SparseTile<Product, Value::kF32>;
  return float_kernel<FloatParams, Tile>(name, isa, macs_per_cycle);
}

}  // namespace
}  // namespace lamina::matmul_sparse24
