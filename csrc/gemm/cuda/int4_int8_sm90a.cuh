// The loop over k of the products of int8 activations and int4 codes on sm_90a. The op gives the products of a ring stage.
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs and whole k chunks;
//            gemm/cuda/sm90a_pipe.cuh feeds them. Two consumer warpgroups expand codes to bytes in wgmma's register operand.
//            Weights are the 64 rows of wgmma and tokens its n, so a few tokens waste no rows. Sums of products are exact
//            integers. When a group ends, the warpgroup waits for its products, scales the sums and adds them to the k
//            chunk (gemm/cuda/group_end.cuh), while the other warpgroup multiplies. The result therefore does not depend
//            on the tile or on the split of k. The end of a k chunk: gemm/cuda/k_chunk.cuh. Where k is split within a
//            single group, its sums stay integers until the reduction
// Layouts    a, its sums of groups: PackedActivations (gemm/cuda/int4_int8.h).  scales, zero points [groups,n].  out [m,n]
// Data path  gmem -TMA-> smem ring -> the products of the op -> s32 -gemm/cuda/group_end.cuh-> f32; then smem rows -> out
//            (gemm/cuda/store_rows.cuh)
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16, as rows q and q + 8 of wgmma
// Requires   w at a multiple of 16 bytes; the workspace is aligned by construction
#pragma once

#include "device/device.h"
#include "gemm/cuda/group_end.cuh"
#include "gemm/cuda/sm90a_pipe.cuh"
#include "gemm/cuda/token_scaler.cuh"
#include "layout/int4.h"

namespace lamina::gemm {

struct Int4Int8Sm90aConfig {
  int tokens, cluster, stage_tiles, stages;  // Sm90aShape
};

// Weights: kCodes, kTileBytes. Products<Int4Int8Sm90a>: the registers of the products in flight.
//
// multiply_stage() starts the products of the tiles of a stage, the first of which is tile `s` of the output tile. It ends
// the groups that end there, calls release() when the products of the stage before have ended, and finish_tile(done) when
// the products of `done` tiles have started and no group ends before the next tile.
template <Int4Int8Sm90aConfig kConfig, class Weights>
struct Int4Int8Sm90a {
  static constexpr int kTokens = kConfig.tokens, kTokenGroups = kTokens / 8;
  static constexpr int kFeatures = 128;
  using Groups = GroupEnd<kTokens, kFeatures, kConfig.stage_tiles * kSlices, 1, kTokenGroups, false,
                          Weights::kCodes>;
  using Pipe = Sm90aPipe<Sm90aShape{.tokens = kTokens,
                                    .cluster = kConfig.cluster,
                                    .stage_tiles = kConfig.stage_tiles,
                                    .stages = kConfig.stages,
                                    .a_bytes = 1,
                                    .group_bytes = Groups::kStageBytes,
                                    .warp_bytes = kTokens * 4,
                                    .tile_bytes = Weights::kTileBytes}>;
  using Tile = typename Pipe::Tile;
  static_assert(kFeatures == Pipe::kFeatures);

  static constexpr const char* kName = Weights::kName;
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = 1;

  struct Args {
    dev::TensorMap map_a, map_w;
    Int4Int8Operands p;
    Split split;
    GroupEndArgs groups;

    constexpr bool copies_a() const { return false; }
    constexpr bool overlaps() const { return split.overlaps; }
  };

  struct Copies {
    int group;  // the next group to end

    LAMINA_DEVICE static Copies at(const Args& args, const Tile& tile) {
      return {args.groups.of_slice(static_cast<int>(tile.first_step) * kSlices)};
    }
    LAMINA_DEVICE void start(const Args& args, const Tile& tile, int step, int thread,
                             std::byte* stage) {
      const int count = args.groups.count_ends(group, (step + Pipe::kStageTiles) * kSlices);
      if (count > 0)
        Groups::template load<Pipe::kCopyThreads>(args, tile.m0, tile.n0, group, count, thread,
                                                  stage + Pipe::kGroupsAt);
      group += count;
    }
  };

  // The place of a warp's sums in the block's tile, for Groups.
  struct Place {
    int warp_m, warp_n;
  };

  // The sums as wgmma's operand d.
  using Sums = int32_t[kTokens / 2];
  LAMINA_DEVICE static Sums& flat(int32_t (&sums)[1][kTokenGroups][4]) {
    return reinterpret_cast<Sums&>(sums);
  }
  LAMINA_DEVICE static void fence_sums(Groups& group) {
    dev::wgmma_fence_registers(flat(group.sums));
    if constexpr (Groups::kSumsKept) dev::wgmma_fence_registers(flat(group.kept));
  }

  // Ends a group whose products have started.
  LAMINA_DEVICE static void end_group(const Args& args, int warp, const std::byte* stage,
                                      Groups& group) {
    dev::wgmma_wait<0>();
    fence_sums(group);
    group.end(args, Place{0, warp}, stage + Pipe::kGroupsAt, tokens_zero(warp));
    fence_sums(group);
  }

  LAMINA_DEVICE static void consume(const Args& args, const typename Pipe::Schedule& schedule,
                                    int warp) {
    typename Pipe::Cursor cursor;
    for (int64_t unit = schedule.first(); unit < schedule.units; unit += schedule.stride())
      compute(args, schedule.tile(unit), warp, cursor);
  }

  LAMINA_DEVICE static void compute(const Args& args, const Tile& tile, int warp,
                                    typename Pipe::Cursor& cursor) {
    using Products = typename Weights::template Products<Int4Int8Sm90a>;
    const int first_step = static_cast<int>(tile.first_step);
    Products products(args, tile, warp);
    Groups group;
    group.begin(args.groups.of_slice(first_step * kSlices));
    const auto end_k_chunk =
        Pipe::k_chunk_end(warp, &group.k_chunk[0][0][0], args.groups.chunk_steps);
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Groups::template keep_zero_points<dev::kWarpLanes>(args.p, tile.m0, dev::lane(),
                                                       tokens_zero(warp));
    dev::warp_sync();
    fence_sums(group);
    const auto finish_tile = [&](int done) {
      if (args.groups.keeps_integers && done == tile.steps) {
        dev::wgmma_wait<0>();
        fence_sums(group);
        group.keep_integers(args, Place{0, warp}, tokens_zero(warp));
      }
      end_k_chunk(args.split, first_step + done, done == tile.steps, [&](int64_t partial) {
        Pipe::template store<TokenScaler, true>(args, tile, warp, partial, group.k_chunk[0]);
      });
    };
    int before = 0;  // the stage before
    for (int s = 0; s < tile.steps; s += Pipe::kStageTiles) {
      const std::byte* const stage = Pipe::stage_at(cursor.stage);
      Pipe::wait_full(cursor);
      group.row = 0;
      const auto release = [&] {
        if (s > 0) Pipe::release(before);
      };
      products.multiply_stage(args, tile, s, warp, stage, group, release, finish_tile);
      before = cursor.stage;
      cursor.advance();
    }
    dev::wgmma_wait<0>();
    fence_sums(group);
    if (tile.steps > 0) Pipe::release(before);
    if (args.split.count == 1)
      Pipe::template store<TokenScaler, false>(args, tile, warp, 0, group.k_chunk[0]);
  }

  // [kTokens] zero points, if a_zero_point is given. Between two tiles store() synchronises the warp, so all lanes
  // have read the zero points of the tile before when keep_zero_points() overwrites them.
  LAMINA_DEVICE static int32_t* tokens_zero(int warp) {
    return reinterpret_cast<int32_t*>(Pipe::warp_at(warp) + Pipe::kTotalBytes);
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Int4Int8Sm90a>(args); }

  static Status start(const Int4Int8Operands& params, const Split& split, int max_blocks,
                      void* stream) {
    Args args{{}, {}, params, split, GroupEndArgs::of(params, split)};
    const int64_t columns = PackedActivations::a_stride(params.problem);
    return Pipe::template launch<Int4Int8Sm90a>(args, columns, columns, max_blocks, stream);
  }

  // launch: CudaKernel::launch
  static CudaKernel record(const char* name, decltype(CudaKernel::launch) launch) {
    return {.name = name,
            .arch = 90,
            .tile_m = kTokens,
            .tile_n = kFeatures,
            .step_k = int4::kTileK,
            .blocks_per_sm = 1,
            .smem_bytes = Pipe::kSmemBytes,
            .cluster = kConfig.cluster,
            .macs_per_cycle = Weights::macs_per_cycle(kTokens),
            .step_cycles = 40,
            .is_persistent = true,
            .launch = launch};
  }
};

}  // namespace lamina::gemm
