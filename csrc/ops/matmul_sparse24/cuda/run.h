// matmul_sparse24 on a GPU.
#pragma once

#include "block/row_alignment.h"
#include "gemm/cuda/int4_int8.h"
#include "gemm/cuda/plan.h"
#include "layout/sparse24_tile.h"
#include "ops/matmul_sparse24/matmul_sparse24.h"

namespace lamina::matmul_sparse24 {

// The rate of wgmma.sp with 64 rows: the tensor cores work tokens / 2 cycles on each of a tile's products, in which shared
// memory gives 128 bytes a cycle of both operands: 64 bytes of each token, and a tile of w for each of four warps.
constexpr int macs_per_cycle(int tokens, int products, int bits) {
  const int a_cycles = products * tokens / 2, w_cycles = 4 * sparse24_tile::tile_bytes(bits) / 128;
  return 64 * sparse24_tile::kTileK * tokens / (a_cycles + w_cycles);
}

// The kernels of matmul_sparse24_int4 and of matmul_sparse24, which has no groups. w points to the packed weight.
using HalfParams = gemm_int4::Params;

// Each k chunk of float sums has a partial sum of its own.
constexpr int64_t k_chunks(const Problem& p) { return ceil_div(p.k, kChunkK); }
constexpr KRule float_k_rule(const Problem&) { return {kChunkK, true}; }

// Every CUDA kernel of each op in this build.
const CudaOp& half_cuda_op();
const CudaOp& int4_cuda_op();
const CudaOp& int8_cuda_op();
const CudaOp& int4_int8_cuda_op();
constexpr KRule int8_k_rule(const Problem&) { return {0, false, kMaxExactK}; }

// As in gemm_int4_int8, but with zero points of weights a single group is not split: its sums are two integers then.
constexpr KRule int4_int8_k_rule(const Problem& p, bool has_zeros) {
  return has_zeros ? KRule{chunk_k(p.group), true} : gemm::int4_int8_k_rule(p);
}

// CudaKernel::launch where a kernel exists with and without zero points of weights.
template <class KernelWithZeros, class KernelWithout>
Status launch_by_zeros(const void* erased, const Split& split, int max_blocks, void* stream) {
  const Int4Int8Operands& params = *static_cast<const Int4Int8Operands*>(erased);
  const auto start =
      params.w_zero_point.is_given() ? &KernelWithZeros::start : &KernelWithout::start;
  return start(params, split, max_blocks, stream);
}

// An error for dtypes and groups that the CUDA kernels cannot take, although the CPU kernels can.
Status check_cuda(const Int4Params& params);
Status check_cuda(const Int4Int8Params& params);
Status check_cuda(const FloatParams& params);

// The alignment of the rows of int8 activations.
inline int a_alignment(const Int8Params& p) {
  return row_alignment(p.a, p.problem.m, p.problem.k, p.a_stride);
}

// Launches the plan; workspace: plan.partial_bytes(), 16-byte aligned.
Status run_cuda(const Int8Params& params, const CudaPlan& plan, void* workspace, void* stream);
Status run_cuda(const Int4Params& params, const CudaPlan& plan, void* workspace, void* stream);
Status run_cuda(const FloatParams& params, const CudaPlan& plan, void* workspace, void* stream);

// The same with a workspace of workspace_bytes(): the packed activations and, where k is split, the partial sums.
int64_t workspace_bytes(const Int4Int8Params& params, const CudaPlan& plan);
Status run_cuda(const Int4Int8Params& params, const CudaPlan& plan, void* workspace, void* stream);

// Packs params.a, or quantises and packs params.floats in its place.
Status launch_pack_activations(const Int4Int8Params& params, const PackedActivations& to,
                               int max_blocks, void* stream);
// Reduces the partial sums to out.
Status launch_float_reduce(const HalfParams& params, const Split& split, int max_blocks,
                           void* stream);
Status launch_int4_int8_reduce(const Int4Int8Operands& params, const Split& split, int max_blocks,
                               void* stream);
Status launch_int8_reduce(const Int8Params& params, const Split& split, int max_blocks,
                          void* stream);

}  // namespace lamina::matmul_sparse24
