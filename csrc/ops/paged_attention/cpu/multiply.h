// The microkernel: c[rows, columns] = (c or 0) + a[rows, k] * b[k, columns], in order of k. Operands are dwords, each of one
// f32, two bf16 or four int8: Dot::add(sum, a, b) adds the product of a broadcast dword and a vector of dwords. b is a
// panel, or rows of the cache where they lie.
//
// A `Simd` wraps the vectors of an instruction set:
//   F, I         kLanes floats, kLanes dwords;  kColumns = 2 kLanes; kMaxRows rows of a microkernel
//   load, store, load_int, store_int, set, set_int, first, add (F and I), sub, mul, div, fma(a, b, c) = a b + c,
//   as_float, as_int
//   max(a, b)    b if either is NaN;  if_less(a, b, yes, no): no if either is NaN
//   keep_lanes(x, low, high, other): other in lanes outside [low, high)
//   shift_left<n>, shift_right<n>, shift_right_signed<n>, bit_and, bit_or, to_floats(I)
//   widen<bytes>(p): kLanes elements of 1, 2 or 4 bytes, zero-extended; from_f16(I): of the low half of each dword
//   transpose(I (&)[8]), then store_transposed<vector>(to, stride, x) of its vectors: columns of 8 keys
// and for a product (products.h) with dot products of smaller types what that product names.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "base/int_math.h"
#include "base/prefetch_line.h"
#include "base/unroll.h"
#include "kv/cache.h"
#include "ops/paged_attention/plan.h"

namespace lamina::paged_attention {
namespace {

// Rows that a later step reads. All phases of a step ask for a few at a time: all at once would fill the core's miss
// buffers and stall it, and a phase that asks for none would leave memory idle. A core drops some prefetches when it is
// busy, so a row may be asked for again `again` rows later (0: once).
class Prefetch {
 public:
  Prefetch() = default;
  static constexpr int kSteps = 4;  // steps of k in a pass of a microkernel
  // passes: how often pass() will be called. rows[-again] is a row too.
  Prefetch(const char* const* rows, int64_t count, int64_t bytes, int64_t passes, int64_t again)
      : rows_(rows),
        bytes_(bytes),
        again_(again),
        left_(std::max<int64_t>(count, 0)),
        each_(ceil_div(left_ * kWhole, std::max<int64_t>(passes, 1))) {}

  LAMINA_INLINE void pass() {
    for (due_ += each_; due_ >= kWhole && left_ > 0; due_ -= kWhole, --left_, ++rows_) {
      ask(rows_[0]);
      if (again_ > 0) ask(rows_[-again_]);
    }
  }

 private:
  static constexpr int64_t kLine = 64, kWhole = 1024;

  LAMINA_INLINE void ask(const char* at) const {
    for (const char* const end = at + bytes_; at < end; at += 2 * kLine) {
      prefetch_line(at);
      prefetch_line(at + kLine);
    }
  }

  const char* const* rows_ = nullptr;
  int64_t bytes_ = 0, again_ = 0, left_ = 0;
  int64_t each_ = 0, due_ = 0;  // rows in parts of kWhole: of a pass, and not yet asked for
};

// b in memory: blocks of kColumns columns, `block` dwords apart, whose rows follow each other.
struct Panel {
  static constexpr int kLeastBlocks = 1;
  const int32_t* at;
  int64_t block;

  // The next row.
  template <class Simd, int kVectors>
  LAMINA_INLINE void take(typename Simd::I (&to)[kVectors]) {
    constexpr int kEach = Simd::kColumns / Simd::kLanes;
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      to[v] = Simd::load_int(at + (v / kEach) * block + v % kEach * Simd::kLanes);
    });
    at += Simd::kColumns;
  }
  template <class Simd>
  void skip_blocks(int64_t count) {
    at += count * block;
  }
};

// Rows of bytes, of which kKeys are interleaved into a row of b: the dword of a column holds an element of each.
// Interleaving by 128-bit parts leaves the columns of each kLanes * kKeys in another order, which restore_columns() undoes.
template <int kKeys>
struct Rows {
  static constexpr int kLeastBlocks =
      kKeys == 4 ? 2 : 1;  // four bytes of each of kLanes columns fill four vectors
  const char* const* rows;
  int64_t at;  // bytes from the beginning of a row

  template <class Simd, int kVectors>
  LAMINA_INLINE void take(typename Simd::I (&to)[kVectors]) {
    using I = typename Simd::I;
    constexpr int64_t kBytes = 4 * Simd::kLanes;
    const char* from[kKeys];
    unroll<kKeys>([&](auto i) LAMINA_INLINE { from[i] = rows[i] + at; });
    rows += kKeys;
    if constexpr (kKeys == 1) {
      unroll<kVectors>([&](auto v) LAMINA_INLINE { to[v] = Simd::load_int(from[0] + v * kBytes); });
    } else if constexpr (kKeys == 2) {
      unroll<kVectors / 2>([&](auto v) LAMINA_INLINE {
        const I a = Simd::load_int(from[0] + v * kBytes), b = Simd::load_int(from[1] + v * kBytes);
        Simd::interleave_halves(a, b, to[2 * v], to[2 * v + 1]);
      });
    } else {
      static_assert(kKeys == 4 && kVectors == 4);
      I bytes[4], pairs[4];
      unroll<4>([&](auto i) LAMINA_INLINE { bytes[i] = Simd::load_int(from[i]); });
      Simd::interleave_bytes(bytes[0], bytes[1], pairs[0], pairs[1]);
      Simd::interleave_bytes(bytes[2], bytes[3], pairs[2], pairs[3]);
      Simd::interleave_halves(pairs[0], pairs[2], to[0], to[1]);
      Simd::interleave_halves(pairs[1], pairs[3], to[2], to[3]);
    }
  }
  template <class Simd>
  void skip_blocks(int64_t count) {
    at += count * Simd::kColumns * 4 / kKeys;
  }
};

// Dwords between rows of a and of c, whatever they hold: queries, weights of a chunk, or sums. A constant leaves the
// registers of addresses to the microkernel.
inline constexpr int64_t kRowStride = kChunk + 32;
static_assert(kv::kMaxHeadDim <= kRowStride);

// c has blocks of kColumns columns next to each other.
template <class B>
struct Operands {
  const int32_t* a;
  B b;
  int32_t* c;
  int64_t k, blocks;
  bool accumulate;

  void skip_rows(int64_t rows) {
    a += rows * kRowStride;
    c += rows * kRowStride;
  }
  template <class Simd>
  void skip_blocks(int64_t count) {
    b.template skip_blocks<Simd>(count);
    c += count * Simd::kColumns;
    blocks -= count;
  }
};

// kBlocks blocks of columns. `side` does its own work in between (Prefetch, KeysAhead).
template <class Simd, class Dot, int kRows, int kBlocks, class B, class Side>
void multiply_rows(const Operands<B>& o, Side& side) {
  using I = typename Simd::I;
  constexpr int kLanes = Simd::kLanes, kVectors = kBlocks * Simd::kColumns / kLanes;
  typename Dot::Sum sum[kRows][kVectors];
  unroll<kRows>([&](auto r) LAMINA_INLINE {
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      sum[r][v] = Dot::sum(o.accumulate ? Simd::load_int(o.c + r * kRowStride + v * kLanes)
                                        : Simd::set_int(0));
    });
  });
  const int32_t* a = o.a;
  B b = o.b;
  const auto step = [&] LAMINA_INLINE {
    I each[kVectors];
    b.template take<Simd, kVectors>(each);
    unroll<kRows>([&](auto r) LAMINA_INLINE {
      const I one = Simd::set_int(a[r * kRowStride]);
      unroll<kVectors>([&](auto v)
                           LAMINA_INLINE { sum[r][v] = Dot::add(sum[r][v], one, each[v]); });
    });
    ++a;
  };
  int64_t left = o.k;
  for (; left >= Prefetch::kSteps; left -= Prefetch::kSteps) {
    side.pass();
    unroll<Prefetch::kSteps>([&](auto) LAMINA_INLINE { step(); });
  }
  for (; left > 0; --left) step();
  unroll<kRows>([&](auto r) LAMINA_INLINE {
    unroll<kVectors>([&](auto v) LAMINA_INLINE {
      Simd::store_int(o.c + r * kRowStride + v * kLanes, Dot::bits(sum[r][v]));
    });
  });
}

// The microkernel for 1 to kMaxRows / kBlocks rows.
template <class Simd, class Dot, int kBlocks, class B, class Side>
void multiply_some(int64_t rows, const Operands<B>& o, Side& side) {
  static constexpr auto kKernels = []<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    return std::array{&multiply_rows<Simd, Dot, kIndex + 1, kBlocks, B, Side>...};
  }(std::make_integer_sequence<int, Simd::kMaxRows / kBlocks>());
  kKernels[static_cast<size_t>(rows - 1)](o, side);
}

// Few rows take two blocks at a time: their sums would otherwise wait for each other.
template <class Simd, class B>
bool takes_two(int64_t rows) {
  return B::kLeastBlocks == 2 || rows <= Simd::kMaxRows / 2;
}

// How often multiply() passes, for `blocks` blocks of k steps.
template <class Simd, class B>
int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
  const int64_t each = takes_two<Simd, B>(rows) ? 2 : 1;
  return ceil_div(rows, Simd::kMaxRows / each) * (k / Prefetch::kSteps) * ceil_div(blocks, each);
}

// Any number of rows, in pieces of nearly equal size.
template <class Simd, class Dot, int kBlocks, class B, class Side>
void multiply_blocks(int64_t rows, Operands<B>& o, Side& side) {
  for (; o.blocks >= kBlocks; o.template skip_blocks<Simd>(kBlocks)) {
    Operands<B> part = o;
    int64_t left = rows;
    for (int64_t pieces = ceil_div(rows, Simd::kMaxRows / kBlocks); pieces > 0; --pieces) {
      const int64_t piece = ceil_div(left, pieces);
      multiply_some<Simd, Dot, kBlocks>(piece, part, side);
      part.skip_rows(piece);
      left -= piece;
    }
  }
}

template <class Simd, class Dot, class B, class Side>
void multiply(int64_t rows, Operands<B> o, Side& side) {
  if (takes_two<Simd, B>(rows)) multiply_blocks<Simd, Dot, 2>(rows, o, side);
  if constexpr (B::kLeastBlocks == 1) multiply_blocks<Simd, Dot, 1>(rows, o, side);
}

}  // namespace
}  // namespace lamina::paged_attention
