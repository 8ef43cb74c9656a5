// What the products of packed int4 weights share: sizes, and what each group of input features has.
#pragma once

#include <cstdint>

#include "base/int_math.h"
#include "base/status.h"
#include "layout/int4_tile.h"

namespace lamina::gemm_int4 {

inline constexpr int kGroupStep = 16;  // every group is a multiple
inline constexpr int kSymmetricZeroPoint = 8;
inline constexpr int64_t kLargestK = int64_t{1} << 48;  // so that sizes of panels fit int64

struct Problem {
  int64_t m = 0;      // tokens
  int64_t n = 0;      // output features
  int64_t k = 0;      // input features
  int64_t group = 0;  // input features that share a scale, a multiple of kGroupStep

  constexpr int64_t groups() const { return ceil_div(k, group); }
};

// An error of `op` names what is wrong; max_k: why no more.
Status check(const char* op, const Problem& problem, int64_t max_k, const char* why);

// Which of `features` input features each of k packed ones is; -1: none, a place that nothing claims. Not given: all of
// them in order.
struct Perm {
  const int32_t* data = nullptr;  // [k]
  int64_t features = 0;

  constexpr bool is_given() const { return data != nullptr; }
};

// An error of `op` names the first entry that is no feature.
Status check(const char* op, const Perm& perm, int64_t k);

// A matrix [groups, n], or not given.
struct OfGroups {
  enum class Kind { kF32, kF16, kBF16, kU8 };
  const void* data = nullptr;
  Kind kind = Kind::kF32;
  int64_t group_stride = 0, stride = 0;  // elements between groups, between columns

  constexpr bool is_given() const { return data != nullptr; }
};

}  // namespace lamina::gemm_int4
