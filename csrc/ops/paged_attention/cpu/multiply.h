// The microkernel: c[rows, kColumns] = (c or 0) + a[rows, k] * b[k, kColumns] in f32, in order of k.
#pragma once

#include <cstdint>

#include "base/int_math.h"
#include "base/unroll.h"

namespace lamina::paged_attention {
namespace {

struct Operands {
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t k;
  bool accumulate;
};

template <class Simd, int kRows>
void multiply_rows(const Operands& o) {
  using F = typename Simd::F;
  constexpr int kLanes = Simd::kLanes, kVectors = Simd::kColumns / kLanes;
  F sum[kRows][kVectors];
  unroll<kRows>([&](auto r) LAMINA_INLINE {
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      sum[r][v] = o.accumulate ? Simd::load(o.c + r * o.c_stride + v * kLanes) : Simd::set(0.0f);
    });
  });
  const float* a = o.a;
  const float* b = o.b;
  for (int64_t p = 0; p < o.k; ++p, ++a, b += o.b_stride) {
    F each[kVectors];
    unroll<kVectors>([&](auto v) LAMINA_INLINE { each[v] = Simd::load(b + v * kLanes); });
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      const F one = Simd::set(a[r * o.a_stride]);
      unroll<kVectors>(
          [&](auto v) LAMINA_INLINE { sum[r][v] = Simd::fma(one, each[v], sum[r][v]); });
    });
  }
  unroll<kRows>([&](auto r) LAMINA_INLINE {
    unroll<kVectors>(
        [&](auto v) LAMINA_INLINE { Simd::store(o.c + r * o.c_stride + v * kLanes, sum[r][v]); });
  });
}

template <class Simd, int kRows = Simd::kMaxRows>
void multiply_some(int64_t rows, const Operands& o) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_some<Simd, kRows - 1>(rows, o);
  }
  multiply_rows<Simd, kRows>(o);
}

// Any number of rows, in pieces of nearly equal size.
template <class Simd>
void multiply(int64_t rows, Operands o) {
  for (int64_t pieces = ceil_div(rows, Simd::kMaxRows); pieces > 0; --pieces) {
    const int64_t piece = ceil_div(rows, pieces);
    multiply_some<Simd>(piece, o);
    o.a += piece * o.a_stride;
    o.c += piece * o.c_stride;
    rows -= piece;
  }
}

}  // namespace
}  // namespace lamina::paged_attention
