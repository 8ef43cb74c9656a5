// gemm_int8 / reduce:   out[i,j] = epilogue(sum over slabs of partial[slab][i,j])
//
// Algorithm  a thread owns eight columns of a row and adds their slabs in order: in int64 where k asks for it, in f32
//            with scales along k
// Budget     <= 128 regs; 0 spills; reads 4 bytes a split and output, written moments before: mostly from L2
#include <algorithm>

#include "base/int_math.h"
#include "ops/gemm_int8/cuda/epilogue.cuh"
#include "ops/gemm_int8/cuda/kernel.h"

namespace lamina::gemm_int8 {
namespace {

struct Reduce {
  struct Args {
    Params p;
    Split split;
  };
  static constexpr const char* kName = "gemm_int8_reduce";
  static constexpr int kThreads = 128, kMinBlocks = 8, kColumns = 8;

  template <class Part, class Acc>
  LAMINA_DEVICE static void reduce(const Args& args, int64_t i, int64_t j) {
    const Problem& problem = args.p.problem;
    Acc sums[kColumns] = {};
    if constexpr (std::is_same_v<Acc, float>)
#pragma unroll
      for (int e = 0; e < kColumns; ++e) sums[e] = kNoSum;
    for (int64_t slab = 0; slab < slabs(args.split, problem); ++slab) {
      const Part* const from = partial_at<Part>(args.split, problem, slab, i, j);
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const dev::U32x4 part = dev::load_global(reinterpret_cast<const dev::U32x4*>(from) + v);
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[4 * v + e] += std::bit_cast<Part>(part.x[e]);
      }
    }
    store_row(args.p, sums, i, Columns<kColumns>(args.p, j));
  }

  LAMINA_DEVICE static void run(const Args& args) {
    const int64_t octets = partial_stride(args.p.problem.n) / kColumns;
    const int64_t first = static_cast<int64_t>(dev::block_index().x) * kThreads;
    const int64_t stride = static_cast<int64_t>(dev::grid_size().x) * kThreads;
    for (int64_t at = first + dev::thread_index(); at < args.p.problem.m * octets; at += stride) {
      const int64_t i = at / octets, j = at % octets * kColumns;
      if (args.p.problem.is_grouped) {
        reduce<float, float>(args, i, j);
      } else if (args.p.problem.k > kMaxExactK) {
        reduce<int32_t, int64_t>(args, i, j);
      } else {
        reduce<int32_t, int32_t>(args, i, j);
      }
    }
  }
};

}  // namespace

Status launch_reduce(const Params& params, const Split& split, int max_blocks, void* stream) {
  const int64_t octets = params.problem.m * (partial_stride(params.problem.n) / Reduce::kColumns);
  const int64_t blocks = std::min<int64_t>(ceil_div(octets, Reduce::kThreads), max_blocks);
  return dev::launch<Reduce>({{static_cast<int>(blocks), 1, 1}, 0}, stream, {params, split});
}

}  // namespace lamina::gemm_int8
