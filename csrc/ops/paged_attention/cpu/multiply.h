// The microkernel: c[rows, columns] = (c or 0) + a[rows, k] * b[k, columns], in order of k. Operands are dwords, each of one
// f32, two bf16 or four int8: Dot::add(sum, a, b) adds the product of a broadcast dword and a vector of dwords.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "base/int_math.h"
#include "base/prefetch_line.h"
#include "base/unroll.h"

namespace lamina::paged_attention {
namespace {

// Cache lines of rows that a later step reads. All phases of a step ask for a few at a time: all at once would fill the
// core's miss buffers and stall it, and a phase that asks for none would leave memory idle.
class Prefetch {
 public:
  Prefetch() = default;
  static constexpr int kSteps = 4;  // steps of k in a pass of a microkernel
  // passes: how often pass() will be called.
  Prefetch(const char* const* rows, int64_t count, int64_t bytes, int64_t passes)
      : rows_(rows),
        bytes_(bytes),
        left_(std::max<int64_t>(count, 0) * ceil_div(bytes, kLine)),
        each_(ceil_div(left_, std::max<int64_t>(passes, 1))) {}

  LAMINA_INLINE void pass() {
    for (int64_t i = std::min(each_, left_); i > 0; --i) {
      prefetch_line(*rows_ + at_);
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

// c has blocks of kColumns columns next to each other; those of b are b_block dwords apart.
struct Operands {
  const int32_t* a;
  int64_t a_stride;
  const int32_t* b;
  int64_t b_stride, b_block;
  int32_t* c;
  int64_t c_stride;
  int64_t k, blocks;
  bool accumulate;

  void skip_rows(int64_t rows) {
    a += rows * a_stride;
    c += rows * c_stride;
  }
  void skip_blocks(int64_t count, int64_t columns) {
    b += count * b_block;
    c += count * columns;
    blocks -= count;
  }
};

// kBlocks blocks of columns.
template <class Simd, class Dot, int kRows, int kBlocks>
void multiply_rows(const Operands& o, Prefetch& prefetch) {
  using I = typename Simd::I;
  constexpr int kLanes = Simd::kLanes, kEach = Simd::kColumns / kLanes, kVectors = kBlocks * kEach;
  typename Dot::Sum sum[kRows][kVectors];
  unroll<kRows>([&](auto r) LAMINA_INLINE {
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      sum[r][v] = Dot::sum(o.accumulate ? Simd::load_int(o.c + r * o.c_stride + v * kLanes)
                                        : Simd::set_int(0));
    });
  });
  const int32_t* a = o.a;
  const int32_t* b = o.b;
  const int64_t a_stride = o.a_stride, b_stride = o.b_stride, b_block = o.b_block;
  const auto step = [&] LAMINA_INLINE {
    I each[kVectors];
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      each[v] = Simd::load_int(b + (v / kEach) * b_block + v % kEach * kLanes);
    });
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      const I one = Simd::set_int(a[r * a_stride]);
      unroll<kVectors>([&](auto v)
                           LAMINA_INLINE { sum[r][v] = Dot::add(sum[r][v], one, each[v]); });
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

// The microkernel for 1 to kMaxRows / kBlocks rows.
template <class Simd, class Dot, int kBlocks>
void multiply_some(int64_t rows, const Operands& o, Prefetch& prefetch) {
  static constexpr auto kKernels = []<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    return std::array{&multiply_rows<Simd, Dot, kIndex + 1, kBlocks>...};
  }(std::make_integer_sequence<int, Simd::kMaxRows / kBlocks>());
  kKernels[static_cast<size_t>(rows - 1)](o, prefetch);
}

// Few rows take two blocks at a time: their sums would otherwise wait for each other.
template <class Simd>
constexpr int64_t kWideRows = Simd::kMaxRows / 2;

// How often multiply() passes, for `blocks` blocks of k steps.
template <class Simd>
int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
  const int64_t each = ceil_div(rows, Simd::kMaxRows) * (k / Prefetch::kSteps);
  return each * (rows <= kWideRows<Simd> ? ceil_div(blocks, 2) : blocks);
}

// Any number of rows, in pieces of nearly equal size.
template <class Simd, class Dot>
void multiply(int64_t rows, Operands o, Prefetch& prefetch) {
  if (rows <= kWideRows<Simd>)
    for (; o.blocks >= 2; o.skip_blocks(2, Simd::kColumns))
      multiply_some<Simd, Dot, 2>(rows, o, prefetch);
  for (; o.blocks >= 1; o.skip_blocks(1, Simd::kColumns)) {
    Operands part = o;
    int64_t left = rows;
    for (int64_t pieces = ceil_div(rows, Simd::kMaxRows); pieces > 0; --pieces) {
      const int64_t piece = ceil_div(left, pieces);
      multiply_some<Simd, Dot, 1>(piece, part, prefetch);
      part.skip_rows(piece);
      left -= piece;
    }
  }
}

}  // namespace
}  // namespace lamina::paged_attention
