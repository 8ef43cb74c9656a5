// gemm_int4 / sm90a:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs and whole k chunks;
//            gemm/cuda/sm90a_pipe.cuh feeds them. Two consumer warpgroups dequantize weights into wgmma's register
//            operand while the products of the slices before are in flight. Weights are the 64 rows of wgmma and
//            tokens its n, so a few tokens waste no rows. A k chunk is one chain of products in the order of k, so
//            the result does not depend on the tile or on the split of k. The end of a k chunk: gemm/cuda/k_chunk.cuh
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/int4.h.  scales, zero points [groups,n].  out [m,n] row-major
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 16-byte loads -> gemm/cuda/int4_dequantize.cuh -> its register
//            operand -> f32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16, as rows q and q + 8 of wgmma
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: HGMMA, UTMALDG, LDGSTS
// Requires   no alignment: the copy warps copy or gather rows of a that TMA cannot load
// Source     own; weights as wgmma's register operand as in Machete, warp roles and ring as in gemm_int8's sm90a.
//            Reference: tests/reference/gemm_int4.py
#pragma once

#include <algorithm>
#include <type_traits>

#include "device/device.h"
#include "gemm/cuda/int4_groups.cuh"
#include "gemm/cuda/sm90a_pipe.cuh"
#include "layout/int4.h"
#include "layout/matrix_descriptor.h"
#include "layout/swizzle.h"
#include "ops/gemm_int4/cuda/products.cuh"
#include "ops/gemm_int4/cuda/run.h"

namespace lamina::gemm_int4 {

struct Sm90aConfig {
  int tokens, cluster, stage_tiles, stages;  // Sm90aShape
};

template <Sm90aConfig kConfig, class T>
struct Sm90a {
  static constexpr int kTokens = kConfig.tokens;
  static constexpr int kFeatures = 128;
  using Groups = StageGroups<T, kFeatures, kConfig.stage_tiles * kSlices>;
  using Pipe = Sm90aPipe<Sm90aShape{kTokens, kConfig.cluster, kConfig.stage_tiles, kConfig.stages,
                                    2, Groups::kBytes}>;
  using Tile = typename Pipe::Tile;
  static_assert(kFeatures == Pipe::kFeatures && kChunkK % (Pipe::kStageTiles * int4::kTileK) == 0);

  static constexpr const char* kName = "gemm_int4_sm90a";
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
  using Weights = uint32_t[kSlices][4];
  using Group = typename Groups::template Reached<1>;

  // sums[64,kTokens] += weights[64,16] * tokens[16,kTokens], for slice s of a tile.
  LAMINA_DEVICE static void start_product(Sums& sums, const uint32_t (&weights)[4], uint64_t tokens,
                                          int s) {
    const uint64_t b = advance_descriptor(tokens, s * kSliceK * 2);
    if constexpr (std::is_same_v<T, F16>) {
      dev::wgmma_m64k16_f16<kTokens>(sums, weights, b, true);
    } else {
      dev::wgmma_m64k16_bf16<kTokens>(sums, weights, b, true);
    }
  }

  // The products of 64 k within one group. Two products make one wgmma group. The four products of a tile have
  // registers of their own, so two products wait only for the two that used their registers one tile before, while
  // the two between are in flight.
  LAMINA_DEVICE static void multiply_tile(const dev::U32x4& codes, uint64_t tokens,
                                          const Group& group, Weights& weights, Sums& sums) {
#pragma unroll
    for (int two = 0; two < kSlices; two += 2) {
      dev::wgmma_wait<kSlices / 2 - 1>();
#pragma unroll
      for (int s = two; s < two + 2; ++s) {
        group.of[0].weights(codes.x[s], weights[s]);
        dev::wgmma_fence_registers(weights[s]);
      }
      dev::wgmma_fence();
#pragma unroll
      for (int s = two; s < two + 2; ++s) start_product(sums, weights[s], tokens, s);
      dev::wgmma_commit();
    }
  }

  // The same for a tile in which a group or k ends; the tile starts at slice `slice`. While products are in flight no
  // register may depend on a branch, so all weights come first, and all products are waited for at the end.
  LAMINA_DEVICE static void multiply_edge(const Args& args, const dev::U32x4& codes,
                                          uint64_t tokens, int slice, const auto& enter,
                                          Group& group, Sums& sums) {
    const int64_t left = args.p.problem.k - static_cast<int64_t>(slice) * kSliceK;
    Weights weights;
#pragma unroll
    for (int s = 0; s < kSlices; ++s) {
      if (group.end <= slice + s) enter();
      group.of[0].weights(codes.x[s], weights[s]);
      mask_weights(weights[s], static_cast<int>(std::min<int64_t>(left - s * kSliceK, kSliceK)));
      dev::wgmma_fence_registers(weights[s]);
    }
    dev::wgmma_fence();
#pragma unroll
    for (int s = 0; s < kSlices; ++s) start_product(sums, weights[s], tokens, s);
    dev::wgmma_commit();
    dev::wgmma_wait<0>();
  }

  // The products of steps [begin, end) of a tile, which lie in one k chunk.
  LAMINA_DEVICE static void multiply(const Args& args, const Tile& tile, int begin, int end,
                                     int warp, typename Pipe::Cursor& cursor, Group& group,
                                     Sums& sums) {
    Weights weights;
    int before = 0;  // the stage before
    dev::wgmma_fence_registers(sums);
    for (int s = begin; s < end; s += Pipe::kStageTiles) {
      const std::byte* const stage = Pipe::stage_at(cursor.stage);
      Pipe::wait_full(cursor);
      const int first = (static_cast<int>(tile.first_step) + s) * kSlices;
      group.begin_stage(first);
      const auto enter = [&] {
        group.enter(args.groups, stage + Pipe::kGroupsAt,
                    warp * int4::kTileN + dev::lane() / 4 * 2);
      };
#pragma unroll
      for (int t = 0; t < Pipe::kStageTiles; ++t) {
        if (t > 0 && s + t >= end) break;  // past k: keeps a sum of -0
        const int slice = first + t * kSlices;
        const dev::U32x4 codes = Pipe::load_codes(stage, warp, t);
        const uint64_t tokens = Pipe::tokens_of(stage, t);
        if (group.end <= slice) enter();
        if (group.end - slice >= kSlices && slice + kSlices <= args.groups.whole_slices) {
          multiply_tile(codes, tokens, group, weights, sums);
        } else {
          multiply_edge(args, codes, tokens, slice, enter, group, sums);
        }
        if (t == 0 && s > begin) Pipe::release(before);  // its last product was waited for above
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

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Sm90a>(args); }

  static Status start(const Params& params, const Split& split, int max_blocks, void* stream) {
    Args args{{}, {}, params, split, GroupArgs::of(params), a_copy_bytes(params)};
    return Pipe::template launch<Sm90a>(args, params.problem.k, params.a_stride, max_blocks,
                                        stream);
  }
};

// The record of the kernels for both dtypes of a.
template <Sm90aConfig kConfig>
CudaKernel sm90a_kernel(const char* name) {
  using Kernel = Sm90a<kConfig, F16>;
  return {.name = name,
          .arch = 90,
          .tile_m = Kernel::kTokens,
          .tile_n = Kernel::kFeatures,
          .step_k = int4::kTileK,
          .blocks_per_sm = 1,
          .smem_bytes = Kernel::Pipe::kSmemBytes,
          .cluster = kConfig.cluster,
          .macs_per_cycle = 2048,
          .step_cycles = 20,
          .is_persistent = true,
          .launch = &launch_by_dtype<Kernel, Sm90a<kConfig, BF16>>};
}

}  // namespace lamina::gemm_int4
