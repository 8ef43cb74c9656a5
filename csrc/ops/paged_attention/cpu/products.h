// The two products of a chunk, scores = queries * keys^T and vectors = weights * values, in three kinds of arithmetic. All have
// the same panels of dwords and the same microkernel; they differ in what a dword holds and how rows are prepared.
//
//   kKeysPerDword       columns that a dword of weights and values holds
//   kKeysPerStep        columns that one step of the microkernel takes, at most kAlign
//   kValueColumns       elements of values that are read together; prepared values and the sums are padded to a multiple
//   kPlanes             a row of queries or weights is kPlanes rows of an operand
//   multiply_keys, multiply_values
//                       the microkernel for any number of rows
//   passes<B>           how often it passes a Prefetch
//   pack_keys           a panel of keys
//   Side, packs_ahead   what multiply_keys does besides, and whether that packs keys of this dtype
//   prepare_values      rows of values that multiply_values can read; nullptr: it reads those of the cache
//   query               writes the planes of one row of f32 [dim]
//   score               planes of dot products to the numbers of a row, in place of the first; returns the largest
//   weigh               numbers to planes of weights, in place; sets sum and returns the factor of the sums of
//                       values
//   finish_vector       planes of sums to f32, in the order of columns of the microkernel
//   in_order            such a vector in the order of elements: itself, or a copy in `room`
#pragma once

#include <cstring>

#include "ops/paged_attention/cpu/multiply.h"
#include "ops/paged_attention/cpu/panels.h"
#include "ops/paged_attention/cpu/softmax.h"

namespace lamina::paged_attention {
namespace {

using PackKeys = void (*)(const char* const* rows, int count, int64_t dim, int32_t* panel,
                          Prefetch& prefetch);
using PrepareValues = void (*)(const char* const* rows, int64_t count, int64_t dim, int32_t* panel,
                               Prefetch& prefetch);

// Scores of a query need a factor, and a number to subtract from integer dot products.
struct Query {
  float factor;
  int32_t offset;
};

// One row of a product, which has kPlanes rows.
struct Planes {
  int32_t* dwords;
  float* floats() const { return reinterpret_cast<float*>(dwords); }
};

// f32, from every type of cache.
template <class Simd>
struct F32Product {
  static constexpr int kKeysPerDword = 1, kKeysPerStep = 1, kPlanes = 1;
  static constexpr int kValueColumns = Simd::kColumns;
  using Values = Rows<1>;
  struct Dot {
    using Sum = typename Simd::F;
    static Sum sum(typename Simd::I bits) { return Simd::as_float(bits); }
    static typename Simd::I bits(Sum sum) { return Simd::as_int(sum); }
    LAMINA_INLINE static Sum add(Sum sum, typename Simd::I a, typename Simd::I b) {
      return Simd::fma(Simd::as_float(a), Simd::as_float(b), sum);
    }
  };
  using Side = KeySide<Simd, float>;
  static void multiply_keys(int64_t rows, const Operands<Panel>& o, Side& side) {
    multiply<Simd, Dot>(rows, o, side);
  }
  static void multiply_values(int64_t rows, const Operands<Values>& o, Prefetch& prefetch) {
    multiply<Simd, Dot>(rows, o, prefetch);
  }
  template <class B>
  static int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
    return paged_attention::passes<Simd, B>(rows, k, blocks);
  }
  PackKeys pack_keys = nullptr;
  bool packs_ahead = false;
  PrepareValues prepare_values = nullptr;

  F32Product(kv::CacheDType dtype, int64_t value_dim) {
    switch (dtype) {
      case kv::CacheDType::kF32:
        set<float>();
        packs_ahead = Simd::kPacksAhead;
        if (value_dim % kValueColumns == 0) prepare_values = nullptr;
        break;
      case kv::CacheDType::kF16:
        set<F16>();
        break;
      case kv::CacheDType::kBF16:
        set<BF16>();
        break;
      case kv::CacheDType::kE4M3:
        set<E4M3>();
        break;
      case kv::CacheDType::kI8:
        set<int8_t>();
        break;
    }
  }
  template <class T>
  void set() {
    pack_keys = &paged_attention::pack_keys<Simd, T, false>;
    prepare_values = &widen_values<Simd, T>;
  }

  static int64_t dwords(int64_t dim) { return dim; }
  static Query query(const float* row, int64_t dim, Planes to) {
    std::memcpy(to.dwords, row, static_cast<size_t>(dim) * sizeof(float));
    return {1.0f, 0};
  }
  static float score(Planes, Query, const ScoreRow& row) {
    return largest_score<Simd, true>(
        row, [&](int64_t j) LAMINA_INLINE { return Simd::load(row.scores + j); });
  }
  static float weigh(Planes, const ScoreRow& row, float highest, float& sum) {
    sum = weigh_row<Simd>(row, highest, [&](int64_t j, auto& w) LAMINA_INLINE {
      unroll<kAlign / Simd::kLanes>(
          [&](auto i) LAMINA_INLINE { Simd::store(row.scores + j + i * Simd::kLanes, w[i]); });
    });
    return 1.0f;
  }
  static void finish_vector(Planes sums, float, int64_t dim, float* vector) {
    std::memcpy(vector, sums.dwords, static_cast<size_t>(dim) * sizeof(float));
  }
  static const float* in_order(const float* vector, int64_t, float*) { return vector; }
};

}  // namespace
}  // namespace lamina::paged_attention
