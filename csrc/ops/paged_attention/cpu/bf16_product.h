// bf16 queries, keys, weights and values with sums in f32: two columns in a dword. Simd::dot_bf16(sum, a, b) adds the
// products of the pairs in two vectors of dwords; interleave_halves(a, b, low, high) interleaves 16-bit elements within
// each 128 bits; store_low_halves stores the low halves of all dwords.
#pragma once

#include "ops/paged_attention/cpu/products.h"

namespace lamina::paged_attention {
namespace {

template <class Simd>
struct Bf16Product {
  static constexpr int kKeysPerDword = 2, kKeysPerStep = 2, kPlanes = 1, kExtra = 0;
  static constexpr int kValueColumns = 2 * Simd::kLanes;
  struct Dot {
    using Sum = typename Simd::F;
    static Sum sum(typename Simd::I bits) { return Simd::as_float(bits); }
    static typename Simd::I bits(Sum sum) { return Simd::as_int(sum); }
    LAMINA_INLINE static Sum add(Sum sum, typename Simd::I a, typename Simd::I b) {
      return Simd::dot_bf16(sum, a, b);
    }
  };
  static void multiply(int64_t rows, const Operands& operands, Prefetch& prefetch) {
    paged_attention::multiply<Simd, Dot>(rows, operands, prefetch);
  }
  static int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
    return paged_attention::passes<Simd>(rows, k, blocks);
  }
  Pack pack_keys = &paged_attention::pack_keys<Simd, BF16, true>;
  Pack pack_values = &interleave_values<Simd, kKeysPerDword>;

  explicit Bf16Product(kv::CacheDType) {}

  static int64_t dwords(int64_t dim) { return dim / 2; }
  static float query(const float* row, int64_t dim, Planes to) {
    auto* pairs = reinterpret_cast<BF16*>(to.dwords);
    for (int64_t i = 0; i < dim; ++i) pairs[i] = from_f32<BF16>(row[i]);  // exact
    return 1.0f;
  }
  static void set_extra(int32_t*, int64_t) {}
  static void finish_scores(Planes, const int32_t*, int64_t, int64_t) {}
  static float finish_weights(Planes row, int64_t begin, int64_t end) {
    using I = typename Simd::I;
    for (int64_t j = begin; j < end; j += Simd::kLanes) {
      const auto w = Simd::load(row.floats() + j);
      const I bits = Simd::as_int(w);
      const I odd = Simd::bit_and(Simd::template shift_right<16>(bits), Simd::set_int(1));
      const I rounded = Simd::add(Simd::add(bits, Simd::set_int(0x7fff)), odd);
      // A NaN might carry into the sign.
      const I kept =
          Simd::as_int(Simd::if_less(w, Simd::set(kInfinity), Simd::as_float(rounded), w));
      Simd::store_low_halves(row.dwords + j / 2, Simd::template shift_right<16>(kept));
    }
    return 1.0f;
  }
  static void finish_vector(Planes sums, float, int64_t dim, float* vector) {
    restore_columns<Simd, kKeysPerDword>(sums.floats(), dim, vector);
  }
};

}  // namespace
}  // namespace lamina::paged_attention
