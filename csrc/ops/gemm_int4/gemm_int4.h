// gemm_int4:   out[i,j] = sum_p a[i,p] * w[j,p] + bias[j]
//              w[j,p] = (q[j,p] - w_zero_point[g,j]) * w_scale[g,j],  g = p / group
//
// With `perm` (act-order), a[i,p] stands for a[i,perm[p]], or for 0 where perm[p] is -1: w, its scales and its zero
// points then have the input features in packed order. The epilogue follows (gemm/epilogue_maths.h).
//
// CPU, f32   all steps are in f32, for every dtype of a. w = fma(q, w_scale, -(w_zero_point * w_scale)); where all
//            zero points are 8 this is the exact product, rounded once. fma(a, w, s) adds the products in order to
//            the sum s of their k chunk (kChunkK input features), then the k chunks are added in order. The result
//            therefore does not depend on the instruction set, the tile or the other rows.
// CPU, bf16  takes the place of f32 where a is bf16, zero points are missing or uint8, and the instruction set in use is
//            avx512_bf16 or above. q - w_zero_point is exact in bf16. A group and the ends of k chunks cut k into
//            pieces. The instruction vdpbf16ps adds two products to the sum of their piece: for each 8 input features
//            of a group the products 2, 0, 3, 1, 6, 4, 7, 5 in this order, where a and q are 0 past k. Each product
//            and sum is rounded once in f32, to nearest; subnormal operands and results become 0. fma(piece, w_scale,
//            s) adds the pieces in order to the sum s of their k chunk, then the k chunks are added in order.
// CUDA       weights have the dtype of a, f16 or bf16. w = fma(q - z, w_scale, (z - w_zero_point) * w_scale), where z
//            is the integer from 0 to 15 nearest to w_zero_point, and the product with w_scale is rounded to that
//            dtype too. Tensor cores add the products of a k chunk in f32, in an order of their own.
// Weights    q: codes 0..15, layout/int4.h: int4_rows on a CPU, int4_tile on CUDA
// Reference  tests/reference/gemm_int4.py
#pragma once

#include <cstdint>
#include <string>

#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"
#include "gemm/epilogue.h"
#include "gemm/float_sums.h"
#include "gemm/problem.h"
#include "quant/group_tensor.h"
#include "quant/perm.h"

namespace lamina::gemm_int4 {

using namespace gemm;

struct Params : Epilogue {
  Problem problem;
  const void* a = nullptr;  // [m, k] of a_dtype, unit column stride; with perm [m, perm.features]
  DType a_dtype = DType::kF32;
  int64_t a_stride = 0;  // elements between rows of a
  Perm perm;
  const uint8_t* w = nullptr;
  GroupTensor w_scale, w_zero_point;  // zero points may be missing
};

Status check(const Problem& problem);
Status run(const Params& params, const Parallel& parallel);

// Describes the plan for a problem on this machine in `text`; problem.is_bf16 chooses the arithmetic.
Status explain(const Problem& problem, int threads, std::string& text);

// Every CPU kernel in this build.
const CpuOp& cpu_op();

}  // namespace lamina::gemm_int4
