// matmul_sparse24 and matmul_sparse24_int4 / sm90a:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p])
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs and whole k chunks;
//            gemm/cuda/sm90a_pipe.cuh feeds them. Two consumer warpgroups load the kept weights, or dequantize their codes,
//            into wgmma.sp's register operand while the products before are in flight; the metadata is one register for
//            64 k. Weights are the 64 rows of wgmma and tokens its n, so a few tokens waste no rows. A k chunk is one
//            chain of products in the order of k, so the result does not depend on the tile or on the split of k. The
//            end of a k chunk: gemm/cuda/k_chunk.cuh
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/sparse24_tile.h.  scales, zero points [groups,n].  out [m,n]
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 16-byte loads, or 8-byte loads ->
//            gemm/cuda/int4_dequantize.cuh -> its register operand -> f32; then smem rows -> out
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16, as rows q and q + 8 of wgmma
// Requires   no alignment: the copy warps copy or gather rows of a that TMA cannot load
// Source     own; warp roles and ring as in gemm_int4's sm90a. Reference: tests/reference/sparse24.py
#pragma once

#include <algorithm>
#include <type_traits>

#include "gemm/cuda/sm90a_pipe.cuh"
#include "layout/matrix_descriptor.h"
#include "ops/matmul_sparse24/cuda/float_weights.cuh"
#include "ops/matmul_sparse24/cuda/run.h"

namespace lamina::matmul_sparse24 {

struct FloatSm90aConfig {
  int tokens, cluster, stage_tiles, stages;  // Sm90aShape
};

template <FloatSm90aConfig kConfig, class Weights>
struct FloatSm90a {
  using T = typename Weights::T;
  static constexpr int kTokens = kConfig.tokens;
  static constexpr int kFeatures = 128;
  using Groups = typename Weights::template Groups<kFeatures, kConfig.stage_tiles * kSlices>;
  using Pipe = Sm90aPipe<Sm90aShape{.tokens = kTokens,
                                    .cluster = kConfig.cluster,
                                    .stage_tiles = kConfig.stage_tiles,
                                    .stages = kConfig.stages,
                                    .a_bytes = 2,
                                    .group_bytes = Groups::kBytes,
                                    .tile_bytes = sparse24_tile::tile_bytes(Weights::kBits)}>;
  using Tile = typename Pipe::Tile;
  static_assert(kFeatures == Pipe::kFeatures && kChunkK % (Pipe::kStageTiles * int4::kTileK) == 0);

  static constexpr const char* kName =
      Weights::kIsInt4 ? "matmul_sparse24_int4_sm90a" : "matmul_sparse24_sm90a";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = 1;

  struct Args {
    dev::TensorMap map_a, map_w;
    HalfParams p;
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

  // The registers of one product. Each of kSets products in flight has its own.
  static constexpr int kSets = kProducts * std::min(Pipe::kStageTiles, 2);
  struct Operand {
    uint32_t a[4], metadata;
  };

  // sums[64,kTokens] += operand[64,32] * tokens[32,kTokens], for product kProduct of a tile.
  template <int kProduct>
  LAMINA_DEVICE static void start_product(Sums& sums, Operand& operand, uint64_t tokens) {
    const uint64_t b = advance_descriptor(tokens, kProduct * kProductK * 2);
    dev::wgmma_fence_registers(operand.a);
    dev::wgmma_fence();
    if constexpr (std::is_same_v<T, F16>) {
      dev::wgmma_sparse_m64k32_f16<kTokens, kProduct>(sums, operand.a, b, operand.metadata, true);
    } else {
      dev::wgmma_sparse_m64k32_bf16<kTokens, kProduct>(sums, operand.a, b, operand.metadata, true);
    }
    dev::wgmma_commit();
  }

  // The products of 64 k, of one group where w holds codes. Each product is a wgmma group of its own, and waits only for
  // the product that used its registers kSets products before.
  LAMINA_DEVICE static void multiply_tile(const std::byte* w, uint32_t metadata, uint64_t tokens,
                                          const Group& group, Operand (&operands)[kProducts],
                                          Sums& sums) {
    [[maybe_unused]] dev::U32x2 codes;
    if constexpr (Weights::kIsInt4) codes = load_codes(w);
    const auto make = [&](int product) {
      dev::wgmma_wait<kSets - 1>();
      if constexpr (Weights::kIsInt4) {
        group.of[0].weights(codes.x[product], operands[product].a);
      } else {
        load_values(w, product, operands[product].a);
      }
      operands[product].metadata = metadata;
    };
    make(0);
    start_product<0>(sums, operands[0], tokens);
    make(1);
    start_product<1>(sums, operands[1], tokens);
  }

  // The same for a tile of codes in which a group or k ends; the tile starts at slice `slice`. While products are in
  // flight no register may depend on a branch, so all weights come first, and all products are waited for at the end.
  LAMINA_DEVICE static void multiply_edge(const Args& args, const std::byte* w, uint32_t metadata,
                                          uint64_t tokens, int slice, const auto& enter,
                                          Group& group, Sums& sums) {
    const int64_t left = args.p.problem.k - static_cast<int64_t>(slice) * kSliceK;
    const dev::U32x2 codes = load_codes(w);
    Operand operands[kProducts];
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
      if (group.end <= slice + 2 * p) enter();
      group.of[0].template half_of_weights<0>(codes.x[p], operands[p].a);
      if (group.end <= slice + 2 * p + 1) enter();
      group.of[0].template half_of_weights<1>(codes.x[p], operands[p].a);
      mask_weights(operands[p].a,
                   static_cast<int>(std::min<int64_t>(left - p * kProductK, kProductK)));
      operands[p].metadata = metadata;
    }
    start_product<0>(sums, operands[0], tokens);
    start_product<1>(sums, operands[1], tokens);
    dev::wgmma_wait<0>();
  }

  // The products of steps [begin, end) of a tile, which lie in one k chunk.
  LAMINA_DEVICE static void multiply(const Args& args, const Tile& tile, int begin, int end,
                                     int warp, typename Pipe::Cursor& cursor, Group& group,
                                     Sums& sums) {
    const uint32_t padding = padding_of(tile.n0 / sparse24_tile::kTileN + warp, args.p.problem.n);
    Operand operands[kSets / kProducts][kProducts];
    int before = 0;  // the stage before
    dev::wgmma_fence_registers(sums);
    for (int s = begin; s < end; s += Pipe::kStageTiles) {
      const std::byte* const stage = Pipe::stage_at(cursor.stage);
      Pipe::wait_full(cursor);
      const int first = (static_cast<int>(tile.first_step) + s) * kSlices;
      group.begin_stage(first);
#pragma unroll
      for (int t = 0; t < Pipe::kStageTiles; ++t) {
        const std::byte* const w = Pipe::tile_at(stage, warp, t);
        const uint64_t tokens = Pipe::tokens_of(stage, t);
        Operand(&mine)[kProducts] = operands[t % (kSets / kProducts)];
        // Past k the products are of zeros.
        const uint32_t metadata =
            load_metadata(Weights::kBits, w) | (s + t < end ? padding : kPadding);
        if constexpr (Weights::kIsInt4) {
          const auto enter = [&] {
            group.enter(args.groups, stage + Pipe::kGroupsAt,
                        warp * sparse24_tile::kTileN + dev::lane() / 4 * 2);
          };
          const int slice = first + t * kSlices;
          if (group.end <= slice) enter();
          if (group.end - slice >= kSlices && slice + kSlices <= args.groups.whole_slices) {
            multiply_tile(w, metadata, tokens, group, mine, sums);
          } else {
            multiply_edge(args, w, metadata, tokens, slice, enter, group, sums);
          }
        } else {
          multiply_tile(w, metadata, tokens, group, mine, sums);
        }
        // The products of the stage before have been waited for once this stage has started as many as are in flight.
        if (t == kSets / kProducts - 1 && s > begin) Pipe::release(before);
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
    constexpr int kChunkSteps = static_cast<int>(kChunkK / sparse24_tile::kTileK);
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

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<FloatSm90a>(args); }

  static Status start(const HalfParams& params, const Split& split, int max_blocks, void* stream) {
    Args args{{}, {}, params, split, Weights::group_args(params), a_copy_bytes(params)};
    return Pipe::template launch<FloatSm90a>(args, params.problem.k, params.a_stride, max_blocks,
                                             stream);
  }
};

// The record of the kernels for both dtypes of a.
template <int kBits, FloatSm90aConfig kConfig>
CudaKernel float_sm90a_kernel(const char* name) {
  using Kernel = FloatSm90a<kConfig, FloatWeights<kBits, F16>>;
  return {.name = name,
          .arch = 90,
          .tile_m = Kernel::kTokens,
          .tile_n = Kernel::kFeatures,
          .step_k = sparse24_tile::kTileK,
          .blocks_per_sm = 1,
          .smem_bytes = Kernel::Pipe::kSmemBytes,
          .cluster = kConfig.cluster,
          .macs_per_cycle = macs_per_cycle(Kernel::kTokens, kProducts, kBits),
          .step_cycles = 20,
          .is_persistent = true,
          .launch = &launch_by_dtype<Kernel, FloatSm90a<kConfig, FloatWeights<kBits, BF16>>>};
}

}  // namespace lamina::matmul_sparse24
