// The reduction, the second launch of a product whose k is split:   out[i,j] = epilogue(sum over s of partial[s][i,j])
//
// Algorithm  a thread owns eight columns of a row and adds their partial sums in the order of k
// Budget     <= 128 regs; 0 spills; reads 4 bytes a partial sum and output, mostly from L2, which still holds them
#pragma once

#include <algorithm>

#include "base/int_math.h"
#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/kernel.h"

namespace lamina::gemm {

inline constexpr int kReduceColumns = 8;

// sums = the sum of `count` partial sums. Part: their stored type; Acc: the type of the addition.
template <class Part, class Acc, class P>
LAMINA_DEVICE void add_partials(const P& p, const Split& split, int64_t count, int64_t i, int64_t j,
                                Acc (&sums)[kReduceColumns]) {
#pragma unroll
  for (int e = 0; e < kReduceColumns; ++e) sums[e] = std::is_same_v<Acc, float> ? Acc(kNoSum) : 0;
  for (int64_t partial = 0; partial < count; ++partial) {
    const Part* const from = partial_at<Part>(split, p.problem, partial, i, j);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const dev::U32x4 part = dev::load_global(reinterpret_cast<const dev::U32x4*>(from) + v);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[4 * v + e] += std::bit_cast<Part>(part.x[e]);
    }
  }
}

template <class Scaler, class Part, class Acc, class P>
LAMINA_DEVICE void reduce_columns(const P& p, const Split& split, int64_t count, int64_t i,
                                  int64_t j) {
  Acc sums[kReduceColumns];
  add_partials<Part>(p, split, count, i, j, sums);
  store_row(p, sums, i, Columns<Scaler, kReduceColumns>(p, j));
}

// Op has kName and reduce(params, split, i, j), which reduces eight columns of row i from j on.
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

}  // namespace lamina::gemm
