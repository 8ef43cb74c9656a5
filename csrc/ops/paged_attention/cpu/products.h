// The two products of a chunk, scores = queries * keys^T and vectors = weights * values, in three kinds of arithmetic. All have
// the same panels of dwords and the same microkernel; they differ in what a dword holds and how rows are prepared.
//
//   kKeysPerDword       columns that a dword of weights and values holds
//   kKeysPerStep        columns that one step of the microkernel takes, at most kAlign
//   kValueColumns       elements of values that are packed together; the panel and the sums are padded to a multiple
//   kPlanes, kExtra     a row of queries or weights is kPlanes rows of an operand; kExtra more rows serve all
//   multiply, passes    the microkernel for any number of rows, and how often it passes a Prefetch
//   query               writes the planes of one row of f32 [dim] and returns the factor of its scores
//   finish_scores       planes of dot products to f32, in place of the first
//   finish_weights      f32 weights to planes of an operand, in place, from `begin` to `end`; returns the factor of
//                       their sums
//   finish_vector       planes of sums to f32
#pragma once

#include <cstring>

#include "ops/paged_attention/cpu/multiply.h"
#include "ops/paged_attention/cpu/panels.h"
#include "ops/paged_attention/cpu/softmax.h"

namespace lamina::paged_attention {
namespace {

using Pack = void (*)(const char* const* rows, int count, int64_t dim, int32_t* panel,
                      Prefetch& prefetch);

// One row of a product, which has kPlanes rows `stride` dwords apart.
struct Planes {
  int32_t* dwords;
  int64_t stride;
  float* floats() const { return reinterpret_cast<float*>(dwords); }
};

// f32, from every type of cache.
template <class Simd>
struct F32Product {
  static constexpr int kKeysPerDword = 1, kKeysPerStep = 1, kPlanes = 1, kExtra = 0;
  static constexpr int kValueColumns = Simd::kColumns;
  struct Dot {
    using Sum = typename Simd::F;
    static Sum sum(typename Simd::I bits) { return Simd::as_float(bits); }
    static typename Simd::I bits(Sum sum) { return Simd::as_int(sum); }
    LAMINA_INLINE static Sum add(Sum sum, typename Simd::I a, typename Simd::I b) {
      return Simd::fma(Simd::as_float(a), Simd::as_float(b), sum);
    }
  };
  static void multiply(int64_t rows, const Operands& operands, Prefetch& prefetch) {
    paged_attention::multiply<Simd, Dot>(rows, operands, prefetch);
  }
  static int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
    return paged_attention::passes<Simd>(rows, k, blocks);
  }
  Pack pack_keys = nullptr, pack_values = nullptr;

  explicit F32Product(kv::CacheDType dtype) {
    switch (dtype) {
      case kv::CacheDType::kF32:
        set<float>();
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
    pack_values = &paged_attention::pack_values<Simd, T>;
  }

  static int64_t dwords(int64_t dim) { return dim; }
  static float query(const float* row, int64_t dim, Planes to) {
    std::memcpy(to.dwords, row, static_cast<size_t>(dim) * sizeof(float));
    return 1.0f;
  }
  static void set_extra(int32_t*, int64_t) {}
  static void finish_scores(Planes, const int32_t*, int64_t, int64_t) {}
  static float finish_weights(Planes, int64_t, int64_t) { return 1.0f; }
  static void finish_vector(Planes sums, float, int64_t dim, float* vector) {
    std::memcpy(vector, sums.dwords, static_cast<size_t>(dim) * sizeof(float));
  }
};

}  // namespace
}  // namespace lamina::paged_attention
