// gemm_int4_int8 / sm90a:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs and whole k chunks;
//            gemm/cuda/sm90a_pipe.cuh feeds them. Two consumer warpgroups expand codes to unsigned bytes in wgmma's
//            register operand. Weights are the 64 rows of wgmma and tokens its n, so a few tokens waste no rows. Sums
//            of products are exact integers. When a group ends, the warpgroup waits for its products, scales the sums
//            and adds them to the k chunk, while the other warpgroup multiplies. The result therefore does not depend
//            on the tile or on the split of k. The end of a k chunk: gemm/cuda/k_chunk.cuh. A single group may be
//            split anywhere: its sums stay integers until the reduction
// Layouts    a, its sums of groups: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/int4.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 16-byte loads -and, shift-> its register operand
//            -> s32 -gemm/cuda/group_end.cuh-> f32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16, as rows q and q + 8 of wgmma
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: IGMMA, UTMALDG, LDGSTS
// Requires   w at a multiple of 16 bytes; the workspace is aligned by construction
// Source     own; warp roles and ring as in gemm_int4's sm90a. Reference: tests/reference/gemm_int4.py
#pragma once

#include "device/device.h"
#include "gemm/cuda/group_end.cuh"
#include "gemm/cuda/sm90a_pipe.cuh"
#include "gemm/cuda/token_scaler.cuh"
#include "layout/int4.h"
#include "layout/matrix_descriptor.h"
#include "layout/swizzle.h"
#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::gemm_int4_int8 {

struct Sm90aConfig {
  int tokens, cluster, stage_tiles, stages;  // Sm90aShape
};

template <Sm90aConfig kConfig>
struct Sm90a {
  static constexpr int kTokens = kConfig.tokens, kTokenGroups = kTokens / 8;
  static constexpr int kFeatures = 128;
  using Groups =
      GroupEnd<kTokens, kFeatures, kConfig.stage_tiles * kSlices, 1, kTokenGroups, false>;
  using Pipe = Sm90aPipe<Sm90aShape{kTokens, kConfig.cluster, kConfig.stage_tiles, kConfig.stages,
                                    1, Groups::kStageBytes, kTokens * 4}>;
  using Tile = typename Pipe::Tile;
  static_assert(kFeatures == Pipe::kFeatures);

  static constexpr const char* kName = "gemm_int4_int8_sm90a";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = 1;

  struct Args {
    dev::TensorMap map_a, map_w;
    CudaParams p;
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

  using Sums = int32_t[kTokens / 2];
  // Products of a tile, 32 k each.
  static constexpr int kProducts = int4::kTileK / 32;
  using Weights = uint32_t[kProducts][4];

  // sums[64,kTokens] (+)= weights[64,32] * tokens[32,kTokens]
  LAMINA_DEVICE static void start_product(Sums& sums, uint32_t (&weights)[4], uint64_t tokens,
                                          bool accumulate) {
    dev::wgmma_fence_registers(weights);
    dev::wgmma_fence();
    dev::wgmma_m64k32_u8s8<kTokens>(sums, weights, tokens, accumulate);
    dev::wgmma_commit();
  }

  LAMINA_DEVICE static Sums& sums_of(Groups& group) { return reinterpret_cast<Sums&>(group.sums); }

  // The product of 32 k from `tokens` on. Codes of 0 leave the first or the last 16 k out.
  LAMINA_DEVICE static void multiply(const Args& args, uint32_t first, uint32_t second,
                                     uint64_t tokens, Groups& group, uint32_t (&weights)[4]) {
    Groups::unpack(first, second, weights);
    if (args.p.a_zero_point.is_given()) group.add_codes(0, weights);
    start_product(sums_of(group), weights, tokens, !group.is_new);
    group.is_new = false;
  }

  // The products of 64 k from slice `slice` on. Within a group, each product is a wgmma group of its own with
  // registers of its own, and waits only for the product that used these registers one tile before. In a tile in
  // which a group ends, products are waited for one by one, and a product across the end becomes two, each with half
  // of the codes.
  LAMINA_DEVICE static void multiply_tile(const Args& args, int warp, const std::byte* stage,
                                          int tile, int slice, Groups& group, Weights& weights) {
    dev::U32x4 codes = Pipe::load_codes(stage, warp, tile);
    const uint64_t tokens = Pipe::tokens_of(stage, tile);
    int end = args.groups.end_of(group.index) - slice;
#pragma unroll 1
    for (int s = 0; s < kSlices;) {
      if (s == 0 && end >= kSlices) {
#pragma unroll
        for (int h = 0; h < kProducts; ++h) {
          dev::wgmma_wait<kProducts - 1>();
          multiply(args, codes.x[2 * h], codes.x[2 * h + 1], advance_descriptor(tokens, h * 32),
                   group, weights[h]);
        }
        s = kSlices;
      } else {
        uint32_t own[4];
        const bool is_second = s % 2 != 0, is_whole = !is_second && end >= s + 2;
        multiply(args, is_second ? 0 : codes.x[0],
                 is_second  ? codes.x[0]
                 : is_whole ? codes.x[1]
                            : 0,
                 advance_descriptor(tokens, s / 2 * 32), group, own);
        dev::wgmma_wait<0>();
        s += is_whole ? 2 : 1;
        codes = is_whole ? dev::U32x4{codes.x[2], codes.x[3], 0, 0}  // registers have no index
                         : dev::U32x4{codes.x[1], codes.x[2], codes.x[3], 0};
      }
      if (s != end) continue;
      dev::wgmma_wait<0>();
      dev::wgmma_fence_registers(sums_of(group));
      group.end(args, Place{0, warp}, stage + Pipe::kGroupsAt, tokens_zero(warp));
      dev::wgmma_fence_registers(sums_of(group));
      end = args.groups.end_of(group.index) - slice;
    }
  }

  LAMINA_DEVICE static void consume(const Args& args, const typename Pipe::Schedule& schedule,
                                    int warp) {
    typename Pipe::Cursor cursor;
    for (int64_t unit = schedule.first(); unit < schedule.units; unit += schedule.stride())
      compute(args, schedule.tile(unit), warp, cursor);
  }

  LAMINA_DEVICE static void compute(const Args& args, const Tile& tile, int warp,
                                    typename Pipe::Cursor& cursor) {
    const int first_step = static_cast<int>(tile.first_step);
    Weights weights;
    Groups group;
    group.begin(args.groups.of_slice(first_step * kSlices));
    const auto end_k_chunk =
        Pipe::k_chunk_end(warp, &group.k_chunk[0][0][0], args.groups.chunk_steps);
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Groups::template keep_zero_points<dev::kWarpLanes>(args.p, tile.m0, dev::lane(),
                                                       tokens_zero(warp));
    dev::warp_sync();
    dev::wgmma_fence_registers(sums_of(group));
    int before = 0;  // the stage before
    for (int s = 0; s < tile.steps; s += Pipe::kStageTiles) {
      const std::byte* const stage = Pipe::stage_at(cursor.stage);
      Pipe::wait_full(cursor);
      group.row = 0;
#pragma unroll 1
      for (int t = 0; t < Pipe::kStageTiles && s + t < tile.steps; ++t) {
        const int done = s + t + 1;
        multiply_tile(args, warp, stage, t, (first_step + s + t) * kSlices, group, weights);
        if (t == 0 && s > 0) Pipe::release(before);  // its last product was waited for above
        if (args.groups.keeps_integers && done == tile.steps) {
          dev::wgmma_wait<0>();
          dev::wgmma_fence_registers(sums_of(group));
          group.keep_integers(args, Place{0, warp}, tokens_zero(warp));
        }
        end_k_chunk(args.split, first_step + done, done == tile.steps, [&](int64_t partial) {
          Pipe::template store<TokenScaler, true>(args, tile, warp, partial, group.k_chunk[0]);
        });
      }
      before = cursor.stage;
      cursor.advance();
    }
    dev::wgmma_wait<0>();
    dev::wgmma_fence_registers(sums_of(group));
    if (tile.steps > 0) Pipe::release(before);
    if (args.split.count == 1)
      Pipe::template store<TokenScaler, false>(args, tile, warp, 0, group.k_chunk[0]);
  }

  // [kTokens] zero points, if a_zero_point is given. Between two tiles store() synchronises the warp, so all lanes
  // have read the zero points of the tile before when keep_zero_points() overwrites them.
  LAMINA_DEVICE static int32_t* tokens_zero(int warp) {
    return reinterpret_cast<int32_t*>(Pipe::warp_at(warp) + Pipe::kTotalBytes);
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Sm90a>(args); }

  static Status start(const CudaParams& params, const Split& split, int max_blocks, void* stream) {
    Args args{{}, {}, params, split, GroupEndArgs::of(params, split)};
    const int64_t columns = PackedActivations::a_stride(params.problem);
    return Pipe::template launch<Sm90a>(args, columns, columns, max_blocks, stream);
  }
};

template <Sm90aConfig kConfig>
CudaKernel sm90a_kernel(const char* name) {
  using Kernel = Sm90a<kConfig>;
  return {.name = name,
          .arch = 90,
          .tile_m = Kernel::kTokens,
          .tile_n = Kernel::kFeatures,
          .step_k = int4::kTileK,
          .blocks_per_sm = 1,
          .smem_bytes = Kernel::Pipe::kSmemBytes,
          .cluster = kConfig.cluster,
          .macs_per_cycle = 4096,
          .step_cycles = 40,
          .is_persistent = true,
          .launch = &launch_as<CudaParams, &Kernel::start>};
}

}  // namespace lamina::gemm_int4_int8
