// The loop over k of the products on f16 and bf16 activations on sm_90a. The op gives the weights and their products.
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs and whole k chunks;
//            gemm/cuda/sm90a_pipe.cuh feeds them. Two consumer warpgroups make the weights of a product in wgmma's register
//            operand while the products before are in flight. Weights are the 64 rows of wgmma and tokens its n, so a few
//            tokens waste no rows. A k chunk is one chain of products in the order of k, so the result does not depend
//            on the tile or on the split of k. The end of a k chunk: gemm/cuda/k_chunk.cuh
// Data path  gmem -TMA-> smem ring -> the products of the op -> f32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16, as rows q and q + 8 of wgmma
// Requires   no alignment: the copy warps copy or gather rows of a that TMA cannot load
#pragma once

#include <algorithm>

#include "device/device.h"
#include "gemm/cuda/half_params.h"
#include "gemm/cuda/int4_groups.cuh"
#include "gemm/cuda/sm90a_pipe.cuh"
#include "gemm/float_sums.h"
#include "layout/int4.h"

namespace lamina::gemm {

struct HalfSm90aConfig {
  int tokens, cluster, stage_tiles, stages;  // Sm90aShape
};

// Weights: T is the dtype of a. Groups and group_args() are those of gemm/cuda/int4_groups.cuh; kHasGroups: they exist.
//
// Products<HalfSm90a>: the registers of the products in flight. load() gives the weights of a tile. multiply_tile() starts
// the products of a tile within a group. multiply_edge() starts those of a tile in which a group or k ends, and waits for
// them. kReleaseTile: once this tile of a stage has started its products, those of the stage before have ended.
// kStopsAtK: no product may start past k, not even one of zeros.
template <HalfSm90aConfig kConfig, class Weights>
struct HalfSm90a {
  using Params = typename Weights::Params;
  static constexpr int kTokens = kConfig.tokens;
  static constexpr int kFeatures = 128;
  using Groups = typename Weights::template Groups<kFeatures, kConfig.stage_tiles * kSlices>;
  using Pipe = Sm90aPipe<Sm90aShape{.tokens = kTokens,
                                    .cluster = kConfig.cluster,
                                    .stage_tiles = kConfig.stage_tiles,
                                    .stages = kConfig.stages,
                                    .a_bytes = 2,
                                    .group_bytes = Groups::kBytes,
                                    .tile_bytes = Weights::kTileBytes}>;
  using Tile = typename Pipe::Tile;
  static_assert(kFeatures == Pipe::kFeatures && kChunkK % (Pipe::kStageTiles * int4::kTileK) == 0);

  static constexpr const char* kName = Weights::kName;
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = 1;

  struct Args {
    dev::TensorMap map_a, map_w;
    Params p;
    Split split;
    GroupArgs groups;
    int a_copy_bytes;  // 16: TMA loads a; 4 or 1: threads copy a, this many bytes at a time

    constexpr bool copies_a() const { return a_copy_bytes < 16; }
    constexpr bool overlaps() const { return false; }  // the first launch of a call
  };

  struct Copies {
    typename Groups::Next next;

    LAMINA_DEVICE static Copies at(const Args& args, const Tile& tile) {
      return {Groups::Next::at(args.groups, static_cast<int>(tile.first_step) * kSlices)};
    }
    LAMINA_DEVICE void start(const Args& args, const Tile& tile, int step, int thread,
                             std::byte* stage) {
      Groups::template load<Pipe::kCopyThreads>(args.groups, next, step * kSlices, tile.n0,
                                                args.p.problem.n, thread, stage + Pipe::kGroupsAt);
      if (args.copies_a()) Pipe::copy_rows(args, tile.m0, step, thread, stage);
    }
  };

  using Sums = float[kTokens / 2];
  using Group = typename Groups::template Reached<1>;

  // The products of steps [begin, end) of a tile, which lie in one k chunk.
  LAMINA_DEVICE static void multiply(const Args& args, const Tile& tile, int begin, int end,
                                     int warp, typename Pipe::Cursor& cursor, Group& group,
                                     Sums& sums) {
    using Products = typename Weights::template Products<HalfSm90a>;
    Products products(args, tile, warp);
    int before = 0;  // the stage before
    dev::wgmma_fence_registers(sums);
    for (int s = begin; s < end; s += Pipe::kStageTiles) {
      const std::byte* const stage = Pipe::stage_at(cursor.stage);
      Pipe::wait_full(cursor);
      const int first = (static_cast<int>(tile.first_step) + s) * kSlices;
      group.begin_stage(first);
#pragma unroll
      for (int t = 0; t < Pipe::kStageTiles; ++t) {
        if (Products::kStopsAtK && t > 0 && s + t >= end) break;
        const auto weights = products.load(stage, warp, t, s + t < end);
        const uint64_t tokens = Pipe::tokens_of(stage, t);
        if constexpr (Weights::kHasGroups) {
          const auto enter = [&] {
            group.enter(args.groups, stage + Pipe::kGroupsAt,
                        warp * int4::kTileN + dev::lane() / 4 * 2);
          };
          const int slice = first + t * kSlices;
          if (group.end <= slice) enter();
          if (group.end - slice >= kSlices && slice + kSlices <= args.groups.whole_slices) {
            products.multiply_tile(weights, tokens, t, group, sums);
          } else {
            Products::multiply_edge(args, weights, tokens, slice, enter, group, sums);
          }
        } else {
          products.multiply_tile(weights, tokens, t, group, sums);
        }
        if (t == Products::kReleaseTile && s > begin) Pipe::release(before);
      }
      before = cursor.stage;
      cursor.advance();
    }
    dev::wgmma_wait<0>();
    dev::wgmma_fence_registers(sums);
    Pipe::release(before);
  }

  LAMINA_DEVICE static void consume(const Args& args, const typename Pipe::Schedule& schedule,
                                    int warp) {
    constexpr int kChunkSteps = static_cast<int>(kChunkK / int4::kTileK);
    typename Pipe::Cursor cursor;
    for (int64_t unit = schedule.first(); unit < schedule.units; unit += schedule.stride()) {
      const Tile tile = schedule.tile(unit);
      const int first_step = static_cast<int>(tile.first_step);
      Sums sums;
      const auto end_k_chunk = Pipe::k_chunk_end(warp, sums, kChunkSteps);
      end_k_chunk.clear(empty_sum(args.p.problem.k));
      Group group;
      group.start(args.groups, first_step * kSlices);
      for (int s = 0; s < tile.steps;) {
        const int end = std::min(tile.steps, s + kChunkSteps);
        multiply(args, tile, s, end, warp, cursor, group, sums);
        end_k_chunk(args.split, first_step + end, end == tile.steps, [&](int64_t partial) {
          Pipe::template store<Unscaled, true>(args, tile, warp, partial, sums);
        });
        s = end;
      }
      if (args.split.count == 1) Pipe::template store<Unscaled, false>(args, tile, warp, 0, sums);
    }
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<HalfSm90a>(args); }

  static Status start(const Params& params, const Split& split, int max_blocks, void* stream) {
    Args args{{}, {}, params, split, Weights::group_args(params), a_copy_bytes(params)};
    return Pipe::template launch<HalfSm90a>(args, params.problem.k, params.a_stride, max_blocks,
                                            stream);
  }
};

// The record of the kernels for both dtypes of a; Weights: a template over the dtype.
template <HalfSm90aConfig kConfig, template <class T> class Weights>
CudaKernel half_sm90a_kernel(const char* name) {
  using Kernel = HalfSm90a<kConfig, Weights<F16>>;
  return {.name = name,
          .arch = 90,
          .tile_m = Kernel::kTokens,
          .tile_n = Kernel::kFeatures,
          .step_k = int4::kTileK,
          .blocks_per_sm = 1,
          .smem_bytes = Kernel::Pipe::kSmemBytes,
          .cluster = kConfig.cluster,
          .macs_per_cycle = Weights<F16>::macs_per_cycle(Kernel::kTokens),
          .step_cycles = 20,
          .is_persistent = true,
          .launch = &launch_by_dtype<Kernel, HalfSm90a<kConfig, Weights<BF16>>>};
}

}  // namespace lamina::gemm
