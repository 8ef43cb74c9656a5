// The microkernel: c[rows, kColumns] = (c or 0) + a[rows, k] * b[k, kColumns], in order of k. Operands are dwords, each of
// one f32, two bf16 or four int8: Dot::add(sum, a, b) adds the product of a broadcast dword and a vector of dwords.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/int_math.h"
#include "base/unroll.h"

namespace lamina::paged_attention {
namespace {

// Cache lines of rows that a later step reads. A microkernel asks for a few with each step of k: all at once would
// fill the core's miss buffers and stall it. They go to L2, which serves more misses at a time than L1.
class Prefetch {
 public:
  Prefetch() = default;
  static constexpr int kSteps = 4;
  // steps: how many steps of k will follow.
  Prefetch(const char* const* rows, int64_t count, int64_t bytes, int64_t steps)
      : rows_(rows),
        bytes_(bytes),
        left_(std::max<int64_t>(count, 0) * ceil_div(bytes, kLine)),
        each_(ceil_div(left_, std::max<int64_t>(steps / kSteps, 1))) {}

  // The share of kSteps steps.
  LAMINA_INLINE void pass() {
    for (int64_t i = std::min(each_, left_); i > 0; --i) {
      __builtin_prefetch(*rows_ + at_, 0, 2);
      at_ += kLine;
      if (at_ >= bytes_) {
        at_ = 0;
        ++rows_;
      }
    }
    left_ = std::max<int64_t>(left_ - each_, 0);
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* const* rows_ = nullptr;
  int64_t bytes_ = 0, left_ = 0, each_ = 0, at_ = 0;
};

struct Operands {
  const int32_t* a;
  int64_t a_stride;
  const int32_t* b;
  int64_t b_stride;
  int32_t* c;
  int64_t c_stride;
  int64_t k;
  bool accumulate;
};

template <class Simd, class Dot, int kRows>
void multiply_rows(const Operands& o, Prefetch& prefetch) {
  using I = typename Simd::I;
  constexpr int kLanes = Simd::kLanes, kVectors = Simd::kColumns / kLanes;
  typename Dot::Sum sum[kRows][kVectors];
  unroll<kRows>([&](auto r) LAMINA_INLINE {
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      sum[r][v] = Dot::sum(o.accumulate ? Simd::load_int(o.c + r * o.c_stride + v * kLanes)
                                        : Simd::set_int(0));
    });
  });
  const int32_t* a = o.a;
  const int32_t* b = o.b;
  const int64_t a_stride = o.a_stride, b_stride = o.b_stride;
  const auto step = [&] LAMINA_INLINE {
    I each[kVectors];
    unroll<kVectors>([&](auto v) LAMINA_INLINE { each[v] = Simd::load_int(b + v * kLanes); });
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      const I one = Simd::set_int(a[r * a_stride]);
      unroll<kVectors>(
          [&](auto v) LAMINA_INLINE { sum[r][v] = Dot::add(sum[r][v], one, each[v]); });
    });
    ++a;
    b += b_stride;
  };
  Prefetch ahead = prefetch;  // a copy stays in registers
  int64_t left = o.k;
  for (; left >= Prefetch::kSteps; left -= Prefetch::kSteps) {
    ahead.pass();
    unroll<Prefetch::kSteps>([&](auto) LAMINA_INLINE { step(); });
  }
  for (; left > 0; --left) step();
  prefetch = ahead;
  unroll<kRows>([&](auto r) LAMINA_INLINE {
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      Simd::store_int(o.c + r * o.c_stride + v * kLanes, Dot::bits(sum[r][v]));
    });
  });
}

template <class Simd, class Dot, int kRows = Simd::kMaxRows>
void multiply_some(int64_t rows, const Operands& o, Prefetch& prefetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_some<Simd, Dot, kRows - 1>(rows, o, prefetch);
  }
  multiply_rows<Simd, Dot, kRows>(o, prefetch);
}

// Any number of rows, in pieces of nearly equal size.
template <class Simd, class Dot>
void multiply(int64_t rows, Operands o, Prefetch& prefetch) {
  for (int64_t pieces = ceil_div(rows, Simd::kMaxRows); pieces > 0; --pieces) {
    const int64_t piece = ceil_div(rows, pieces);
    multiply_some<Simd, Dot>(piece, o, prefetch);
    o.a += piece * o.a_stride;
    o.c += piece * o.c_stride;
    rows -= piece;
  }
}

}  // namespace
}  // namespace lamina::paged_attention
