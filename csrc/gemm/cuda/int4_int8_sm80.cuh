// The loop over k of the products of int8 activations and int4 codes on sm_80. The op gives the products of a ring step.
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks: gemm/cuda/sm80_features.cuh. Sums of
//            products are exact integers. When a group ends, the warp scales its sums and adds them to the k chunk
//            (gemm/cuda/group_end.cuh), so the result does not depend on the tile or on the split of k. The end of a k
//            chunk: gemm/cuda/k_chunk.cuh. Where k is split within a single group, its sums stay integers until the
//            reduction
// Layouts    a, its sums of groups: PackedActivations (gemm/cuda/int4_int8.h).  scales, zero points [groups,n].  out [m,n]
// Data path  gmem -cp.async-> smem ring -> the products of the op -> s32 -gemm/cuda/group_end.cuh-> f32 -> out
// Requires   w at a multiple of 16 bytes; the workspace is aligned by construction
#pragma once

#include "device/device.h"
#include "gemm/cuda/group_end.cuh"
#include "gemm/cuda/sm80_features.cuh"
#include "gemm/cuda/token_scaler.cuh"
#include "layout/int4.h"

namespace lamina::gemm {

struct Int4Int8Sm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // warps along the rows and the columns of a block
  int stages;            // stages of the ring
  int blocks_per_sm;
};

// Weights: kCodes, kTileBytes. Products<Int4Int8Sm80>::multiply_step() adds the products of a ring step, a tile of 64 k, to
// the sums of groups and ends the groups that end there.
template <Int4Int8Sm80Config kConfig, class Weights>
struct Int4Int8Sm80 {
  static constexpr int kTiles = kConfig.block_n / kConfig.warps_n / int4::kTileN;
  static constexpr int kTokenGroups = kConfig.block_m / kConfig.warps_m / 8;
  using Groups = GroupEnd<kConfig.block_m, kConfig.block_n, kSlices, kTiles, kTokenGroups, true,
                          Weights::kCodes>;
  // The zero points of the tokens lie behind the ring.
  using Pipe = Sm80Features<Sm80Shape{.block_m = kConfig.block_m,
                                      .block_n = kConfig.block_n,
                                      .warps_m = kConfig.warps_m,
                                      .warps_n = kConfig.warps_n,
                                      .warps_k = 1,
                                      .step_tiles = 1,
                                      .stages = kConfig.stages,
                                      .a_bytes = 1,
                                      .tile_bytes = Weights::kTileBytes,
                                      .group_bytes = Groups::kStageBytes},
                            TokenScaler, kConfig.block_m * 4>;
  using Place = typename Pipe::Place;

  static constexpr const char* kName = Weights::kName;
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = kConfig.blocks_per_sm;
  static constexpr int kSmemBytes = Pipe::kSmemBytes;

  struct Args {
    Int4Int8Operands p;
    Split split;
    GroupEndArgs groups;
    Sm80Units units;

    constexpr int64_t row_bytes() const { return units.tiles_k * int64_t{int4::kTileK}; }
  };

  struct Copies {
    typename Pipe::Copies operands;
    int group;  // the next group to end

    LAMINA_DEVICE static Copies at(const Args& args, const Place& at) {
      return {Pipe::Copies::at(args, at), args.groups.of_slice(at.first_step * kSlices)};
    }
    LAMINA_DEVICE void start(const Args& args, const Place& at, int step, std::byte* stage) {
      operands.start_rows(args, swizzle::kChunkBytes, stage);
      operands.start_tiles(args, step, stage);
      const int count = args.groups.count_ends(group, (step + 1) * kSlices);
      if (count > 0)
        Groups::template load<kThreads>(args, at.m0, at.n0, group, count, dev::thread_index(),
                                        stage + Pipe::kGroupsAt);
      group += count;
      operands.advance();
    }
  };

  // [block_m] zero points, if a_zero_point is given.
  LAMINA_DEVICE static int32_t* tokens_zero() {
    return reinterpret_cast<int32_t*>(dev::dynamic_smem() + Pipe::kRingBytes);
  }

  LAMINA_DEVICE static void compute(const Args& args, const Place& at) {
    using Products = typename Weights::template Products<Int4Int8Sm80>;
    Groups group;
    group.begin(args.groups.of_slice(at.first_step * kSlices));
    const auto end_k_chunk = Pipe::k_chunk_end(group.k_chunk, args.groups.chunk_steps);
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Groups::template keep_zero_points<kThreads>(args.p, at.m0, dev::thread_index(), tokens_zero());
    Pipe::template for_steps<Copies>(args, at, [&](int step, const std::byte* stage) {
      Products::multiply_step(args, at, step, stage, group);
      if (args.groups.keeps_integers && at.is_last(step))
        group.keep_integers(args, at, tokens_zero());
      end_k_chunk(args.split, step + 1, at.is_last(step), [&](int64_t partial) {
        Pipe::template store<true>(args, at, partial, group.k_chunk);
      });
    });
    if (args.split.count == 1) Pipe::template store<false>(args, at, 0, group.k_chunk);
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Int4Int8Sm80>(args); }

  static Status start(const Int4Int8Operands& params, const Split& split, int max_blocks,
                      void* stream) {
    return Pipe::template launch<Int4Int8Sm80>(
        Weights::kOp, {params, split, GroupEndArgs::of(params, split), {}}, max_blocks, stream);
  }

  // launch: CudaKernel::launch
  static CudaKernel record(const char* name, decltype(CudaKernel::launch) launch) {
    return {.name = name,
            .arch = 80,
            .tile_m = kConfig.block_m,
            .tile_n = kConfig.block_n,
            .step_k = int4::kTileK,
            .blocks_per_sm = kConfig.blocks_per_sm,
            .smem_bytes = kSmemBytes,
            .macs_per_cycle = Weights::kMacsPerCycle,
            .step_cycles = 100,
            .launch = launch};
  }
};

}  // namespace lamina::gemm
