// What an ISA's Tile is asked to do, and what is done for those that only multiply. In each ISA's file: body.h says why.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "base/unroll.h"
#include "gemm/epilogue_maths.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"

namespace lamina::gemm_int4_int8 {
namespace {

struct NoSession {
  explicit NoSession(const Problem&) {}
};

// Sums as they are, or scaled: with zero points that are 8, with given ones.
enum class Scaling { kNone, kSymmetric, kZeroPoints };

// What multiply() reads: codes as they are packed, or a byte each.
enum class Codes { kPacked, kBytes };

// The part of a group that lies in a block of k.
struct Piece {
  int fours;          // groups of four k
  bool begins, ends;  // its group
  const float* scale;
  const float* minus_zero;
  int64_t group;
};

// body(scaling, as a constant): the compiler cannot know that stores of sums leave a Step as it is, and asks again for each.
LAMINA_INLINE inline void with_scaling(Scaling scaling, const auto& body) {
  if (scaling == Scaling::kSymmetric) {
    body(std::integral_constant<Scaling, Scaling::kSymmetric>{});
  } else if (scaling == Scaling::kZeroPoints) {
    body(std::integral_constant<Scaling, Scaling::kZeroPoints>{});
  } else {
    body(std::integral_constant<Scaling, Scaling::kNone>{});
  }
}

// How far ahead in its codes multiply() reads where they are packed.
inline constexpr int64_t kStreamAhead = 2048;

// What one multiply() does, for each of its pieces in turn:
//   acc = the group's sums of activations * codes so far; if it ends here and they are scaled, y += group
struct Step {
  int rows;
  const int8_t* a;   // packed, from the first four k on
  int first_four;    // of its tile
  const int8_t* w;   // codes
  int64_t w_stride;  // bytes between tiles of adjacent n
  int tiles_n;
  const Piece* pieces;
  int count;
  const int32_t* a_sums;  // [group][kTileM]
  int32_t* acc;           // [rows][kTileN]
  float* y;               // [rows][kTileN]
  int column;             // the first: of pieces' columns
  Scaling scaling;
  const Problem& problem;
};

// A group's sums, scaled, on to those of its k chunk: where multiply() does not. Functions of their own: see rows.h.
LAMINA_NOINLINE void add_symmetric(const int32_t* __restrict acc, int32_t a_zero,
                                   const int32_t* __restrict q_sum, int32_t a_sum,
                                   const float* __restrict scale, int count, float* __restrict y) {
  for (int j = 0; j < count; ++j) {
    const int32_t sum = correct(acc[j], a_zero, q_sum[j]);
    y[j] = std::fma(static_cast<float>(sum - kSymmetricZeroPoint * a_sum), scale[j], y[j]);
  }
}

LAMINA_NOINLINE void add_zero_points(const int32_t* __restrict acc, int32_t a_zero,
                                     const int32_t* __restrict q_sum, int32_t a_sum,
                                     const float* __restrict minus_zero,
                                     const float* __restrict scale, int count,
                                     float* __restrict y) {
  for (int j = 0; j < count; ++j) {
    const int32_t sum = correct(acc[j], a_zero, q_sum[j]);
    const float x = std::fma(minus_zero[j], static_cast<float>(a_sum), static_cast<float>(sum));
    y[j] = std::fma(x, scale[j], y[j]);
  }
}

}  // namespace
}  // namespace lamina::gemm_int4_int8
