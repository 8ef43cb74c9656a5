// The microkernel: c[rows, kColumns] = (c or 0) + a[rows, k] * b[k, kColumns] in f32, in order of k.
#pragma once

#include <cstdint>

#include "base/int_math.h"
#include "base/unroll.h"

namespace lamina::paged_attention {
namespace {

// Cache lines of rows that a later step reads. A microkernel asks for a few with each step of k: all at once would
// fill the core's miss buffers and stall it.
class Prefetch {
 public:
  Prefetch() = default;
  // steps: how many steps of k will follow.
  Prefetch(const char* const* rows, int64_t count, int64_t bytes, int64_t steps)
      : rows_(rows),
        bytes_(bytes),
        left_(count * ceil_div(bytes, kLine)),
        each_(static_cast<int>(ceil_div(left_, std::max<int64_t>(steps, 1)))) {}

  LAMINA_INLINE void step() {
    for (int i = 0; i < each_ && left_ > 0; ++i, --left_) {
      __builtin_prefetch(*rows_ + at_, 0, 2);
      at_ += kLine;
      if (at_ >= bytes_) {
        at_ = 0;
        ++rows_;
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* const* rows_ = nullptr;
  int64_t bytes_ = 0, left_ = 0, at_ = 0;
  int each_ = 0;
};

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
void multiply_rows(const Operands& o, Prefetch& prefetch) {
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
    prefetch.step();
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
void multiply_some(int64_t rows, const Operands& o, Prefetch& prefetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_some<Simd, kRows - 1>(rows, o, prefetch);
  }
  multiply_rows<Simd, kRows>(o, prefetch);
}

// Any number of rows, in pieces of nearly equal size.
template <class Simd>
void multiply(int64_t rows, Operands o, Prefetch& prefetch) {
  for (int64_t pieces = ceil_div(rows, Simd::kMaxRows); pieces > 0; --pieces) {
    const int64_t piece = ceil_div(rows, pieces);
    multiply_some<Simd>(piece, o, prefetch);
    o.a += piece * o.a_stride;
    o.c += piece * o.c_stride;
    rows -= piece;
  }
}

}  // namespace
}  // namespace lamina::paged_attention
