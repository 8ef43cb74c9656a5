// gemm_int4_int8:   out[i,j] = (sum_g y[i,j,g]) * a_scale[i] + bias[j]
//                   y[i,j,g] = (acc[i,j,g] - w_zero_point[g,j] * a_sum[i,g]) * w_scale[g,j]
//                   acc[i,j,g] = sum_p (a[i,p] - a_zero_point[i]) * q[j,p]
//                   a_sum[i,g] = sum_p (a[i,p] - a_zero_point[i])
//
// Sums over p run over the input features of group g, `group` of them from g * group; acc and a_sum are exact
// integers. The epilogue follows (gemm/epilogue_maths.h). With `perm` (act-order), a[i,p] stands for a[i,perm[p]], or
// for a_zero_point[i] where perm[p] is -1.
//
// Steps      are in f32. Without zero points every zero point is 8, and x = acc - 8 a_sum is one exact integer. With
//            zero points x = fma(-w_zero_point, a_sum, acc), which is exact too if 15 * 255 * group < 2^24 and zero
//            points are integers from 0 to 15. fma(x, w_scale, s) adds a group to the sum s of its k chunk, then the
//            k chunks are added in order. A split of k between k chunks therefore does not change the result.
// Weights    q: codes 0..15, layout/int4.h: int4_rows on a CPU, int4_tile on CUDA
// Reference  tests/reference/gemm_int4.py
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "base/broadcast.h"
#include "base/int_math.h"
#include "base/parallel.h"
#include "base/status.h"
#include "gemm/epilogue.h"
#include "gemm/int4_int8_sums.h"
#include "gemm/problem.h"
#include "layout/int4.h"
#include "quant/group_tensor.h"
#include "quant/perm.h"

namespace lamina::gemm_int4_int8 {

using namespace gemm;

// The sums of a group fit int32: 255 * 15 * 2^19 < 2^31.
inline constexpr int64_t kMaxK = kMostGroupK;

struct Params : Epilogue {
  Problem problem;
  const int8_t* a = nullptr;  // [m, k], unit column stride; with perm [m, perm.features]
  // With has_floats, in place of a and a_scale: the call quantises them to int8 with a symmetric scale a token. Empty floats
  // may have no address.
  bool has_floats = false;
  const void* floats = nullptr;
  DType floats_dtype = DType::kF32;
  int64_t a_stride = 0;  // elements between rows of a, or of floats
  Perm perm;
  const uint8_t* w = nullptr;
  Broadcast<float> a_scale;           // [m], with a
  Broadcast<int8_t> a_zero_point;     // [m], or not given
  GroupTensor w_scale, w_zero_point;  // zero points may be missing
};

Status check(const Problem& problem);

// On a CPU: the bytes of a call's workspace, which holds the activations that the call quantises; and the product.
int64_t workspace_bytes(const Params& params);
Status run(const Params& params, void* workspace, const Parallel& parallel);

// Quantises the floats of a call, if it has floats, to the workspace; `params` then has a and a_scale instead.
Status quantize_floats(Params& params, void* workspace, const Parallel& parallel);

// Describes the plan for a problem on this machine in `text`.
Status explain(const Problem& problem, int threads, std::string& text);

// Every CPU kernel in this build.
const CpuOp& cpu_op();

}  // namespace lamina::gemm_int4_int8
