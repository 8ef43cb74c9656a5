// matmul_sparse24: products with a 2:4 weight, of which each group of four input features keeps two. A weight that is
// not kept takes no part in any sum: it is 0, and NaN or Inf in its activation does not matter.
//
//   matmul_sparse24_int8   gemm_int8 (ops/gemm_int8/gemm_int8.h) of the weight with zeros in place: the same formula,
//                          scales, epilogue and bits
//   matmul_sparse24_int4   gemm_int4 (ops/gemm_int4/gemm_int4.h) over the kept weights: sums are in f32, in the order
//                          of k, k chunk by k chunk
//   matmul_sparse24_int4_int8   gemm_int4_int8 (ops/gemm_int4_int8/gemm_int4_int8.h) over the kept weights: with zero
//                          points, a_sum[i,j,g] counts the activations that column j keeps
//   matmul_sparse24        out[i,j] = sum_p a[i,p] * w[j,p] + bias[j] over the kept weights, which have the dtype of a;
//                          sums as in matmul_sparse24_int4. The epilogue follows (gemm/epilogue_maths.h)
//
// Weights    layout/sparse24_rows.h on a CPU, layout/sparse24_tile.h on CUDA
// Reference  tests/reference/matmul_sparse24.py
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/parallel.h"
#include "base/status.h"
#include "ops/gemm_int4/gemm_int4.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::matmul_sparse24 {

using namespace gemm;

// A packed weight.
struct Weight {
  const uint8_t* data = nullptr;
};

struct Int8Params : gemm_int8::Params {  // but w, which is not used
  Weight weight;
};

struct Int4Params : gemm_int4::Params {  // but w, which is not used
  Weight weight;
};

struct Int4Int8Params : gemm_int4_int8::Params {  // but w, which is not used
  Weight weight;
};

struct FloatParams : Epilogue {
  Problem problem;
  const void* a = nullptr;      // [m, k], unit column stride
  DType a_dtype = DType::kF32;  // of the weight too
  int64_t a_stride = 0;         // elements between rows of a
  Perm perm;                    // not given
  Weight weight;
};

// The checks of sizes, of matmul_sparse24_int8 and so on.
Status check_int8(const Problem& problem);
Status check_int4(const Problem& problem);
Status check_int4_int8(const Problem& problem);
Status check_float(const Problem& problem);

Status run(const Int8Params& params, const Parallel& parallel);
Status run(const Int4Params& params, const Parallel& parallel);
// workspace: gemm_int4_int8::workspace_bytes.
Status run(const Int4Int8Params& params, void* workspace, const Parallel& parallel);
Status run(const FloatParams& params, const Parallel& parallel);

// Describes the plan for a problem on this machine in `text`. op: the name of the op.
Status explain(std::string_view op, const Problem& problem, int threads, std::string& text);

// Every CPU kernel in this build.
const CpuOp& int8_op();
const CpuOp& int4_op();
const CpuOp& int4_int8_op();
const CpuOp& float_op();

}  // namespace lamina::matmul_sparse24
