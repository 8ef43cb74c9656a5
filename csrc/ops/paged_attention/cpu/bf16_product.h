// bf16 queries, keys, weights and values with sums in f32: two columns in a dword. Simd::dot_bf16(sum, a, b) adds the
// products of the pairs in two vectors of dwords; interleave_halves(a, b, low, high) interleaves 16-bit elements within
// each 128 bits; to_bf16(a, b) rounds both to bf16, with 0 for subnormal
// numbers.
#pragma once

#include "ops/paged_attention/cpu/products.h"

namespace lamina::paged_attention {
namespace {

template <class Simd>
struct Bf16Product {
  static constexpr int kKeysPerDword = 2, kKeysPerStep = 2, kPlanes = 1;
  static constexpr int kValueColumns = 2 * Simd::kLanes;
  using Values = Rows<kKeysPerDword>;
  struct Dot {
    using Sum = typename Simd::F;
    static Sum sum(typename Simd::I bits) { return Simd::as_float(bits); }
    static typename Simd::I bits(Sum sum) { return Simd::as_int(sum); }
    LAMINA_INLINE static Sum add(Sum sum, typename Simd::I a, typename Simd::I b) {
      return Simd::dot_bf16(sum, a, b);
    }
  };
  using Side = KeySide<Simd, BF16>;
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
  PackKeys pack_keys = &paged_attention::pack_keys<Simd, BF16, true>;
  PrepareValues prepare_values = nullptr;
  static constexpr bool packs_ahead = Simd::kPacksAhead;

  Bf16Product(kv::CacheDType, int64_t value_dim) {
    if (value_dim % kValueColumns != 0) prepare_values = &pad_values<sizeof(BF16), kValueColumns>;
  }

  static int64_t dwords(int64_t dim) { return dim / 2; }
  static Query query(const float* row, int64_t dim, Planes to) {
    auto* pairs = reinterpret_cast<BF16*>(to.dwords);
    for (int64_t i = 0; i < dim; ++i) pairs[i] = from_f32<BF16>(row[i]);  // exact
    return {1.0f, 0};
  }
  static float score(Planes, Query, const ScoreRow& row) {
    return largest_score<Simd, true>(
        row, [&](int64_t j) LAMINA_INLINE { return Simd::load(row.scores + j); });
  }
  static float weigh(Planes row_of_pairs, const ScoreRow& row, float highest, float& sum) {
    static_assert(kAlign == 2 * Simd::kLanes);
    sum = weigh_row<Simd>(row, highest, [&](int64_t j, auto& w) LAMINA_INLINE {
      Simd::store_int(row_of_pairs.dwords + j / 2, Simd::to_bf16(w[0], w[1]));
    });
    return 1.0f;
  }
  static void finish_vector(Planes sums, float, int64_t dim, float* vector) {
    std::memcpy(vector, sums.dwords, static_cast<size_t>(dim) * sizeof(float));
  }
  static const float* in_order(const float* vector, int64_t dim, float* room) {
    restore_columns<Simd, kKeysPerDword>(vector, dim, room);
    return room;
  }
};

}  // namespace
}  // namespace lamina::paged_attention
