// The second launch of a product whose k is split:   out[i,j] = epilogue(sum over slabs of partial[slab][i,j])
//
// Algorithm  a thread owns eight columns of a row and adds their slabs in order
// Budget     <= 128 regs; 0 spills; reads 4 bytes a split and output, written moments before: mostly from L2
#pragma once

#include <algorithm>

#include "base/int_math.h"
#include "ops/gemm_int8/cuda/epilogue.cuh"
#include "ops/gemm_int8/cuda/kernel.h"

namespace lamina::gemm_int8 {

inline constexpr int kReduceColumns = 8;

// The sums of slabs, of parts that are added as Acc.
template <class Part, class Acc, class P>
LAMINA_DEVICE void add_slabs(const P& p, const Split& split, int64_t slabs, int64_t i, int64_t j,
                             Acc (&sums)[kReduceColumns]) {
#pragma unroll
  for (int e = 0; e < kReduceColumns; ++e) sums[e] = std::is_same_v<Acc, float> ? Acc(kNoSum) : 0;
  for (int64_t slab = 0; slab < slabs; ++slab) {
    const Part* const from = partial_at<Part>(split, p.problem, slab, i, j);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const dev::U32x4 part = dev::load_global(reinterpret_cast<const dev::U32x4*>(from) + v);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[4 * v + e] += std::bit_cast<Part>(part.x[e]);
    }
  }
}

template <class Part, class Acc, class P>
LAMINA_DEVICE void reduce_columns(const P& p, const Split& split, int64_t slabs, int64_t i,
                                  int64_t j) {
  Acc sums[kReduceColumns];
  add_slabs<Part>(p, split, slabs, i, j, sums);
  store_row(p, sums, i, Columns<kReduceColumns>(p, j));
}

// Op: kName and reduce(params, split, i, j), eight columns from j.
template <class P, class Op>
struct Reduce {
  struct Args {
    P p;
    Split split;
  };
  static constexpr const char* kName = Op::kName;
  static constexpr int kThreads = 128, kMinBlocks = 6;

  LAMINA_DEVICE static void run(const Args& args) {
    dev::wait_for_previous();
    const int64_t octets = partial_stride(args.p.problem.n) / kReduceColumns;
    const int64_t first = static_cast<int64_t>(dev::block_index().x) * kThreads;
    const int64_t stride = static_cast<int64_t>(dev::grid_size().x) * kThreads;
    for (int64_t at = first + dev::thread_index(); at < args.p.problem.m * octets; at += stride)
      Op::reduce(args.p, args.split, at / octets, at % octets * kReduceColumns);
  }

  static Status launch(const P& params, const Split& split, int max_blocks, void* stream) {
    const int64_t octets = params.problem.m * (partial_stride(params.problem.n) / kReduceColumns);
    const int64_t blocks = std::min<int64_t>(ceil_div(octets, kThreads), max_blocks);
    const dev::LaunchShape shape{{static_cast<int>(blocks), 1, 1}, 0, 1, split.overlaps};
    return dev::launch<Reduce>(shape, stream, {params, split});
  }
};

}  // namespace lamina::gemm_int8
