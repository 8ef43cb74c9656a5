// matmul_sparse24_int8 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  a block owns block_m tokens x block_n features and one split of k: gemm/cuda/sm80_features.cuh. An mma.sp
//            skips the half of the products whose weight is not kept. Sums are exact integers, so the result depends
//            neither on the tile nor on the split of k, and has the bits of gemm_int8
// Layouts    a [m,k] row-major.  w: layout/sparse24_tile.h.  out [m,n] row-major
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte and 4-byte loads (w, metadata)-> regs
//            -mma.sp m16n8k64-> s32 -> out
// Budget     regs <= 168; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA.SP, LDGSTS, LDSM
// Requires   no alignment: rows of a that do not allow 16-byte copies are copied in 4-byte words or in bytes
// Source     own; weights as mma.sp's operand a as in Sparse-Marlin. Reference: tests/reference/gemm.py
#pragma once

#include "device/sparse.h"
#include "gemm/cuda/integer_scaler.cuh"
#include "gemm/cuda/sm80_features.cuh"
#include "layout/sparse24_tile.h"
#include "ops/matmul_sparse24/cuda/run.h"
#include "ops/matmul_sparse24/cuda/weights.cuh"

namespace lamina::matmul_sparse24 {

struct Int8Sm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // warps along the rows and the columns of a block
  int step_tiles;        // tiles of 64 k in a step of the ring
  int stages;
  int blocks_per_sm;
};

template <Int8Sm80Config kConfig>
struct Int8Sm80 {
  using Pipe = Sm80Features<Sm80Shape{.block_m = kConfig.block_m,
                                      .block_n = kConfig.block_n,
                                      .warps_m = kConfig.warps_m,
                                      .warps_n = kConfig.warps_n,
                                      .warps_k = 1,
                                      .step_tiles = kConfig.step_tiles,
                                      .stages = kConfig.stages,
                                      .a_bytes = 1,
                                      .tile_bytes = sparse24_tile::tile_bytes(8),
                                      .group_bytes = 0},
                            IntegerScaler, 0, false>;
  using Place = typename Pipe::Place;
  static constexpr int kTiles = Pipe::kTiles, kTokenGroups = Pipe::kTokenGroups;

  static constexpr const char* kName = "matmul_sparse24_int8_sm80";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = kConfig.blocks_per_sm;
  static constexpr int kSmemBytes = Pipe::kSmemBytes;

  struct Args {
    Int8Params p;
    Split split;
    int a_copy_bytes;  // bytes of one copy of a: 16, 4 or 1
    Sm80Units units;

    constexpr int64_t row_bytes() const { return p.a_stride; }
  };

  struct Copies : Pipe::Copies {
    LAMINA_DEVICE static Copies at(const Args& args, const Place& at) {
      return {Pipe::Copies::at(args, at)};
    }
    LAMINA_DEVICE void start(const Args& args, const Place&, int step, std::byte* stage) {
      this->start_any_rows(args, step, stage);
      this->start_tiles(args, step, stage);
      this->advance();
    }
  };

  using Sums = int32_t[kTiles][kTokenGroups][4];

  LAMINA_DEVICE static void multiply_step(const Args& args, const Place& at, int step,
                                          const std::byte* stage, Sums& sums) {
    constexpr int kTileChunks = sparse24_tile::kTileK / swizzle::kChunkBytes;
    const int64_t column = at.n0 / sparse24_tile::kTileN + at.warp_n * kTiles;
#pragma unroll
    for (int t = 0; t < kConfig.step_tiles; ++t) {
      if (t > 0 && step * kConfig.step_tiles + t >= args.units.tiles_k) break;  // past k
      typename Pipe::WideTokens tokens;
      Pipe::load_tokens(at, stage, t * kTileChunks, tokens);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const std::byte* const tile = Pipe::tile_at(at, stage, i, t);
        uint32_t a[4];
        load_values(tile, 0, a);
        const uint32_t metadata = load_metadata(8, tile) | padding_of(column + i, args.p.problem.n);
#pragma unroll
        for (int j = 0; j < kTokenGroups; ++j)
          dev::mma_sparse_m16n8k64_s8(sums[i][j], a, tokens[j], metadata);
      }
    }
  }

  LAMINA_DEVICE static void compute(const Args& args, const Place& at) {
    Sums sums = {};
    Pipe::template for_steps<Copies>(args, at, [&](int step, const std::byte* stage) {
      multiply_step(args, at, step, stage, sums);
    });
    if (args.split.count == 1) {
      Pipe::template store<false>(args, at, 0, sums);
    } else {
      Pipe::template store<true>(args, at, at.split, sums);
    }
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Int8Sm80>(args); }

  static Status start(const Int8Params& params, const Split& split, int max_blocks, void* stream) {
    return Pipe::template launch<Int8Sm80>("matmul_sparse24_int8",
                                           {params, split, copy_bytes_of(a_alignment(params)), {}},
                                           max_blocks, stream);
  }
};

template <Int8Sm80Config kConfig>
CudaKernel int8_sm80_kernel(const char* name) {
  using Kernel = Int8Sm80<kConfig>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = Kernel::Pipe::kStepK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = 4096,
          .step_cycles = 100,
          .launch = &launch_as<Int8Params, &Kernel::start>};
}

}  // namespace lamina::matmul_sparse24
