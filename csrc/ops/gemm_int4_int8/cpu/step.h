// The arguments of a Tile's multiply(), and scaling for the Tiles that cannot scale. Each ISA compiles its own copy:
// gemm/cpu/int8_nest.h says why.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "base/unroll.h"
#include "gemm/cpu/prefetch.h"
#include "gemm/epilogue_maths.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"

namespace lamina::gemm_int4_int8 {
namespace {

struct NoSession {
  explicit NoSession(const Problem&) {}
};

// Sums stay unscaled, or are scaled with all zero points 8, or with given zero points.
enum class Scaling { kNone, kSymmetric, kZeroPoints };

// The form of the codes that multiply() reads: two in a byte, or one.
enum class Codes { kPacked, kBytes };

// The part of a group that lies in a block of k.
struct Piece {
  int fours;                        // groups of four k
  bool begins, ends;                // whether its group begins, ends here
  const float *scale, *zero_point;  // of the columns of the strip
  int64_t group;
};

// Calls body(scaling as a constant). The compiler cannot know that the stores of sums do not change the Step; without
// the constant it would test `scaling` after each store.
LAMINA_INLINE inline void with_scaling(Scaling scaling, const auto& body) {
  if (scaling == Scaling::kSymmetric) {
    body(std::integral_constant<Scaling, Scaling::kSymmetric>{});
  } else if (scaling == Scaling::kZeroPoints) {
    body(std::integral_constant<Scaling, Scaling::kZeroPoints>{});
  } else {
    body(std::integral_constant<Scaling, Scaling::kNone>{});
  }
}

// The arguments of one multiply(), which for each piece in turn computes
//   acc = the sums of activations * codes of the piece's group so far;  y += scaled acc, if the group ends and is
//   scaled
struct Step {
  int rows;
  const int8_t* a;          // packed, from the first four k on
  int first_four;           // index of the first four k within its tile
  const int8_t* w;          // codes
  int64_t w_stride;         // bytes between tiles of adjacent n
  gemm::StreamAhead ahead;  // of packed codes
  int tiles_n;
  const Piece* pieces;
  int count;
  const int32_t* a_sums;  // [group][kTileM]
  int32_t* acc;           // [rows][kTileN]
  float* y;               // [rows][kTileN]
  int column;             // the first column, an index into the scales of the pieces
  Scaling scaling;
  const Problem& problem;
};

// Adds the scaled sums of a group to its k chunk, where multiply() cannot scale. Not inlined, for the reason in
// gemm/cpu/row_steps.h.
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
                                     const float* __restrict zero_point,
                                     const float* __restrict scale, int count,
                                     float* __restrict y) {
  for (int j = 0; j < count; ++j) {
    const int32_t sum = correct(acc[j], a_zero, q_sum[j]);
    const float x = std::fma(-zero_point[j], static_cast<float>(a_sum), static_cast<float>(sum));
    y[j] = std::fma(x, scale[j], y[j]);
  }
}

}  // namespace
}  // namespace lamina::gemm_int4_int8
