// matmul_sparse24_int8 / sm90a:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs; gemm/cuda/sm90a_pipe.cuh feeds them. Two
//            consumer warpgroups load the kept weights and their metadata into wgmma.sp's registers. Weights are the 64
//            rows of wgmma and tokens its n, so a few tokens waste no rows. Sums are exact integers, so the result
//            depends neither on the tile nor on the split of k, and has the bits of gemm_int8
// Layouts    a [m,k] row-major.  w: layout/sparse24_tile.h.  out [m,n] row-major
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 16-byte and 4-byte loads -> its register operand and
//            metadata -> s32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16, as rows q and q + 8 of wgmma
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: IGMMA.SP, UTMALDG
// Requires   rows of a that start at multiples of 16 bytes: checked in gemm/cuda/plan.cc
// Source     own; warp roles and ring as in gemm_int4's sm90a. Reference: tests/reference/gemm.py
#pragma once

#include "device/sparse.h"
#include "gemm/cuda/integer_scaler.cuh"
#include "gemm/cuda/sm90a_pipe.cuh"
#include "layout/sparse24_tile.h"
#include "ops/matmul_sparse24/cuda/run.h"
#include "ops/matmul_sparse24/cuda/weights.cuh"

namespace lamina::matmul_sparse24 {

struct Int8Sm90aConfig {
  int tokens, cluster, stage_tiles, stages;  // Sm90aShape
};

template <Int8Sm90aConfig kConfig>
struct Int8Sm90a {
  static constexpr int kTokens = kConfig.tokens;
  using Pipe = Sm90aPipe<Sm90aShape{.tokens = kTokens,
                                    .cluster = kConfig.cluster,
                                    .stage_tiles = kConfig.stage_tiles,
                                    .stages = kConfig.stages,
                                    .a_bytes = 1,
                                    .group_bytes = 0,
                                    .tile_bytes = sparse24_tile::tile_bytes(8),
                                    .has_chunks = false}>;
  using Tile = typename Pipe::Tile;

  static constexpr const char* kName = "matmul_sparse24_int8_sm90a";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = 1;

  struct Args {
    dev::TensorMap map_a, map_w;
    Int8Params p;
    Split split;

    constexpr bool copies_a() const { return false; }
    constexpr bool overlaps() const { return false; }  // the first launch of a call
  };
  using Copies = NoCopies;

  using Sums = int32_t[kTokens / 2];

  // The products of a tile. Each product of 64 k is a wgmma group of its own. Each of the kStageTiles products of a stage
  // has registers of its own, so a product waits only for the one that used them one stage before. Products past k are of
  // zeros: while products are in flight no register may depend on a branch.
  LAMINA_DEVICE static void multiply(const Args& args, const Tile& tile, int warp,
                                     typename Pipe::Cursor& cursor, Sums& sums) {
    uint32_t weights[Pipe::kStageTiles][4], metadata[Pipe::kStageTiles];
    const uint32_t padding = padding_of(tile.n0 / sparse24_tile::kTileN + warp, args.p.problem.n);
    int before = 0;  // the stage before
    dev::wgmma_fence_registers(sums);
    for (int s = 0; s < tile.steps; s += Pipe::kStageTiles) {
      const std::byte* const stage = Pipe::stage_at(cursor.stage);
      Pipe::wait_full(cursor);
#pragma unroll
      for (int t = 0; t < Pipe::kStageTiles; ++t) {
        const std::byte* const w = Pipe::tile_at(stage, warp, t);
        dev::wgmma_wait<Pipe::kStageTiles - 1>();
        load_values(w, 0, weights[t]);
        metadata[t] = load_metadata(8, w) | (s + t < tile.steps ? padding : kPadding);
        dev::wgmma_fence_registers(weights[t]);
        dev::wgmma_fence();
        dev::wgmma_sparse_m64k64_s8<kTokens>(sums, weights[t], Pipe::tokens_of(stage, t),
                                             metadata[t], true);
        dev::wgmma_commit();
      }
      if (s > 0) Pipe::release(before);
      before = cursor.stage;
      cursor.advance();
    }
    dev::wgmma_wait<0>();
    dev::wgmma_fence_registers(sums);
    if (tile.steps > 0) Pipe::release(before);
  }

  LAMINA_DEVICE static void consume(const Args& args, const typename Pipe::Schedule& schedule,
                                    int warp) {
    typename Pipe::Cursor cursor;
    for (int64_t unit = schedule.first(); unit < schedule.units; unit += schedule.stride()) {
      const Tile tile = schedule.tile(unit);
      Sums sums = {};
      multiply(args, tile, warp, cursor, sums);
      if (args.split.count == 1) {
        Pipe::template store<IntegerScaler, false>(args, tile, warp, 0, sums);
      } else {
        Pipe::template store<IntegerScaler, true>(args, tile, warp, tile.split, sums);
      }
    }
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Int8Sm90a>(args); }

  static Status start(const Int8Params& params, const Split& split, int max_blocks, void* stream) {
    Args args{{}, {}, params, split};
    args.split.steps *= Pipe::kStageTiles;  // the pipe counts tiles
    return Pipe::template launch<Int8Sm90a>(args, params.problem.k, params.a_stride, max_blocks,
                                            stream);
  }
};

template <Int8Sm90aConfig kConfig>
CudaKernel int8_sm90a_kernel(const char* name) {
  using Kernel = Int8Sm90a<kConfig>;
  return {.name = name,
          .arch = 90,
          .tile_m = Kernel::kTokens,
          .tile_n = Kernel::Pipe::kFeatures,
          .step_k = Kernel::Pipe::kStageTiles * sparse24_tile::kTileK,
          .blocks_per_sm = 1,
          .smem_bytes = Kernel::Pipe::kSmemBytes,
          .cluster = kConfig.cluster,
          .a_alignment = 16,
          .macs_per_cycle = macs_per_cycle(Kernel::kTokens, 1, 8),
          .step_cycles = 20,
          .is_persistent = true,
          .launch = &launch_as<Int8Params, &Kernel::start>};
}

}  // namespace lamina::matmul_sparse24
