// gemm_int4:   out[i,j] = sum_p a[i,p] * w[j,p] + bias[j],   w[j,p] = (q[j,p] - w_zero_point[g,j]) * w_scale[g,j],  g = p / group
//
// With `perm` a[i,p] is a[i,perm[p]], or 0 where perm[p] is -1: what is of k is then in the order of packing (act-order).
// Then what gemm/epilogue_maths.h says.
//
// Steps      in f32, whatever the dtype of a: w = fma(q, w_scale, -(w_zero_point * w_scale)), for zero points that are 8
//            the exact product rounded once; fma(a, w, s) adds a product to the sum s of its k chunk, kChunkK input
//            features, in order; then k chunks are added. So neither the instruction set, nor the tile, nor the other rows
//            show.
//            On CUDA in f16 or bf16, the dtype of a: w = fma(q - z, w_scale, (z - w_zero_point) * w_scale), the last
//            product rounded to it too, where z is the nearest integer from 0 to 15; tensor cores add the products of a
//            k chunk in an order of their own.
// Weights    q: codes 0..15, layout/int4.h, int4_rows on a CPU, int4_tile on CUDA
// Reference  tests/reference/gemm_int4.py
#pragma once

#include <cstdint>
#include <string>

#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"
#include "gemm/epilogue.h"
#include "gemm/problem.h"
#include "quant/group_tensor.h"
#include "quant/perm.h"

namespace lamina::gemm_int4 {

using namespace gemm;

inline constexpr int64_t kChunkK = 1024;

struct Params : Epilogue {
  Problem problem;
  const void* a = nullptr;  // [m, k] of a_dtype, unit column stride; with perm [m, perm.features]
  DType a_dtype = DType::kF32;
  int64_t a_stride = 0;  // elements between rows of a
  Perm perm;
  const uint8_t* w = nullptr;
  GroupTensor w_scale, w_zero_point;  // zero points: or not given
};

Status check(const Problem& problem);
Status run(const Params& params, const Parallel& parallel);

// The plan for a problem on this machine, as text.
Status explain(const Problem& problem, int threads, std::string& text);

// Every CPU kernel in this build.
const CpuOp& cpu_op();

}  // namespace lamina::gemm_int4
