// gemm_int8:   out[i,j] = (float(acc[i,j]) * a_scale[i]) * w_scale[j] + bias[j]
//              acc[i,j] = sum_p (a[i,p] - a_zero_point[i]) * w[j,p]            exact integer
//
// With scales along k, group g is the kScaleGroup input features from g * kScaleGroup, and acc[i,j,g] is the sum over
// it:
//
//              out[i,j] = sum_g (float(acc[i,j,g]) * a_scale[i,g]) * w_scale[g,j] + bias[j]
//
// The sum over g is in f32: each product is added with one rounding to the sum of its k chunk (kChunkGroups groups),
// then the k chunks are added in order. A split of k between k chunks therefore does not change the result.
//
// The epilogue (gemm/epilogue_maths.h) follows, each step where its operand is given: activation(out), * gate[i,j],
// + residual[i,j], and conversion to int8 with a static scale, which gemm_int8_quantized (quantized.h) uses.
//
// int8 activations times int8 weights. The integer part is bit-exact for every int8 value on every
// ISA, so results do not depend on the ISA, the tile, the batch or the thread count.
// Reference: tests/reference/gemm.py
#pragma once

#include <cstdint>
#include <string>

#include "base/broadcast.h"
#include "base/parallel.h"
#include "base/status.h"
#include "gemm/epilogue.h"
#include "gemm/int8_sums.h"
#include "gemm/problem.h"

namespace lamina::gemm_int8 {

using namespace gemm;

// Column sums are int32: 128 * 2^24 = 2^31.
inline constexpr int64_t kMaxK = (int64_t{1} << 24) - 1;

struct Params : Epilogue {
  Problem problem;                  // group: kScaleGroup with scales along k, else 0
  const int8_t* a = nullptr;        // [m, k], unit column stride
  int64_t a_stride = 0;             // elements between rows of a
  const int8_t* w = nullptr;        // layout/int8_tile.h of [n, k]
  const int32_t* w_sums = nullptr;  // [n] sums of w over k; grouped: [groups, n] over each group
  Broadcast<float> a_scale;         // [m], those of the first group
  Broadcast<float> w_scale;         // [n], those of the first group
  int64_t a_scale_group = 0;        // elements between groups
  int64_t w_scale_group = 0;
  Broadcast<int8_t> a_zero_point;  // [m], or not given

  constexpr Broadcast<float> a_scale_of(int64_t group) const {
    return {a_scale.data + group * a_scale_group, a_scale.stride};
  }
  constexpr Broadcast<float> w_scale_of(int64_t group) const {
    return {w_scale.data + group * w_scale_group, w_scale.stride};
  }
};

Status check(const Problem& problem);
Status run(const Params& params, const Parallel& parallel);

// Describes the plan for a problem on this machine in `text`.
Status explain(const Problem& problem, int threads, std::string& text);

// Every CPU kernel in this build.
const CpuOp& cpu_op();

}  // namespace lamina::gemm_int8
