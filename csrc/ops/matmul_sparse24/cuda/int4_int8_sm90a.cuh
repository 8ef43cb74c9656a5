// matmul_sparse24_int4_int8 / sm90a:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs and whole k chunks;
//            gemm/cuda/sm90a_pipe.cuh feeds them. Two consumer warpgroups expand kept codes to bytes in wgmma.sp's register
//            operand. Sums are exact integers. When a group ends, the warpgroup waits for its products, scales the sums
//            and adds them to the k chunk (gemm/cuda/group_end.cuh), while the other warpgroup multiplies. The result
//            therefore does not depend on the tile or on the split of k. With zero points a second product, of ones,
//            sums the activations that each feature keeps. A single group without zero points may be split anywhere
// Layouts    a: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/sparse24_tile.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 8-byte and 4-byte loads -prmt, lop3-> its register
//            operand and metadata -> s32 -> f32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16, as rows q and q + 8 of wgmma
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: IGMMA.SP, UTMALDG, LDGSTS
// Requires   w at a multiple of 16 bytes; the workspace is aligned by construction
// Source     own; warp roles and ring as in gemm_int4's sm90a. Reference: tests/reference/sparse24.py
#pragma once

#include "gemm/cuda/sm90a_pipe.cuh"
#include "gemm/cuda/token_scaler.cuh"
#include "ops/matmul_sparse24/cuda/int4_int8_weights.cuh"

namespace lamina::matmul_sparse24 {

struct Int4Int8Sm90aConfig {
  int tokens, cluster, stage_tiles, stages;  // Sm90aShape
};

template <Int4Int8Sm90aConfig kConfig, bool kHasZeros>
struct Int4Int8Sm90a {
  static constexpr int kTokens = kConfig.tokens, kTokenGroups = kTokens / 8;
  static constexpr int kFeatures = 128;
  using Groups = GroupEnd<kTokens, kFeatures, kConfig.stage_tiles * kSlices, 1, kTokenGroups, false,
                          kHasZeros ? Codes::kSparseWithZeros : Codes::kSparse>;
  using Pipe = Sm90aPipe<Sm90aShape{.tokens = kTokens,
                                    .cluster = kConfig.cluster,
                                    .stage_tiles = kConfig.stage_tiles,
                                    .stages = kConfig.stages,
                                    .a_bytes = 1,
                                    .group_bytes = Groups::kStageBytes,
                                    .warp_bytes = kTokens * 4,
                                    .tile_bytes = sparse24_tile::tile_bytes(4)}>;
  using Tile = typename Pipe::Tile;
  static_assert(kFeatures == Pipe::kFeatures);

  static constexpr const char* kName = "matmul_sparse24_int4_int8_sm90a";
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

  using Sums = int32_t[kTokens / 2];
  LAMINA_DEVICE static Sums& flat(int32_t (&sums)[1][kTokenGroups][4]) {
    return reinterpret_cast<Sums&>(sums);
  }
  LAMINA_DEVICE static void fence_sums(Groups& group) {
    dev::wgmma_fence_registers(flat(group.sums));
    if constexpr (kHasZeros) dev::wgmma_fence_registers(flat(group.kept));
  }

  // Operand a of the products of ones.
  using Ones = uint32_t[4];
  LAMINA_DEVICE static void set_ones(Ones& ones) {
#pragma unroll
    for (int i = 0; i < 4; ++i) ones[i] = 0x01010101;
  }

  // The product of slices [begin, end) of a tile, a wgmma group of its own.
  LAMINA_DEVICE static void multiply(const Args& args, const std::byte* w, uint32_t padding,
                                     uint64_t tokens, int begin, int end, Groups& group,
                                     Int8Operand& operand, Ones& ones) {
    unpack_codes(load_codes(w), operand.a);
    operand.metadata = s8_metadata(load_metadata(4, w) | padding);
    if (end - begin < kSlices) mask_slices(operand.a, begin, end);
    if (args.p.a_zero_point.is_given()) group.add_codes(0, operand.a);
    dev::wgmma_fence_registers(operand.a);
    if constexpr (kHasZeros) dev::wgmma_fence_registers(ones);
    dev::wgmma_fence();
    dev::wgmma_sparse_m64k64_s8<kTokens>(flat(group.sums), operand.a, tokens, operand.metadata,
                                         !group.is_new);
    if constexpr (kHasZeros)
      dev::wgmma_sparse_m64k64_s8<kTokens>(flat(group.kept), ones, tokens, operand.metadata,
                                           !group.is_new);
    dev::wgmma_commit();
    group.is_new = false;
    group.slices += end - begin;
  }

  // Ends a group whose products have started.
  LAMINA_DEVICE static void end_group(const Args& args, int warp, const std::byte* stage,
                                      Groups& group) {
    dev::wgmma_wait<0>();
    fence_sums(group);
    group.end(args, Place{0, warp}, stage + Pipe::kGroupsAt, tokens_zero(warp));
    fence_sums(group);
  }

  // The products of two tiles within one group, without zero points: with them the sums leave no registers for a second
  // product in flight. Each has registers of its own, and waits only for the product that used
  // them two tiles before.
  LAMINA_DEVICE static void multiply_pair(const Args& args, int warp, const std::byte* stage,
                                          int tile, uint32_t padding, Groups& group,
                                          Int8Operand (&operands)[2], Ones& ones) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      dev::wgmma_wait<1>();
      multiply(args, Pipe::tile_at(stage, warp, tile + i), padding,
               Pipe::tokens_of(stage, tile + i), 0, kSlices, group, operands[i], ones);
    }
  }

  // The products of one tile, from slice `slice` on, in which a group may end. Products are waited for one by one.
  LAMINA_DEVICE static void multiply_tile(const Args& args, int warp, const std::byte* stage,
                                          int tile, int slice, uint32_t padding, Groups& group) {
    int end = args.groups.end_of(group.index) - slice;
#pragma unroll 1
    for (int s = 0; s < kSlices;) {
      const int next = end < kSlices ? end : kSlices;
      Int8Operand own;
      Ones ones;
      set_ones(ones);
      mask_slices(ones, s, next);
      multiply(args, Pipe::tile_at(stage, warp, tile), padding, Pipe::tokens_of(stage, tile), s,
               next, group, own, ones);
      dev::wgmma_wait<0>();
      fence_sums(group);
      s = next;
      if (s != end) continue;
      end_group(args, warp, stage, group);
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
    const uint32_t padding = padding_of(tile.n0 / sparse24_tile::kTileN + warp, args.p.problem.n);
    Int8Operand operands[2];
    Ones ones;
    set_ones(ones);
    Groups group;
    group.begin(args.groups.of_slice(first_step * kSlices));
    const auto end_k_chunk =
        Pipe::k_chunk_end(warp, &group.k_chunk[0][0][0], args.groups.chunk_steps);
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Groups::template keep_zero_points<dev::kWarpLanes>(args.p, tile.m0, dev::lane(),
                                                       tokens_zero(warp));
    dev::warp_sync();
    fence_sums(group);
    // Call it after the products of the tile before step `done`.
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
#pragma unroll
      for (int t = 0; t < Pipe::kStageTiles; t += 2) {
        if (t > 0 && s + t >= tile.steps) break;
        const int slice = (first_step + s + t) * kSlices;
        const int end = args.groups.end_of(group.index) - slice;
        if (!kHasZeros && end >= 2 * kSlices && s + t + 1 < tile.steps) {
          multiply_pair(args, warp, stage, t, padding, group, operands, ones);
          if (end == 2 * kSlices) end_group(args, warp, stage, group);
          finish_tile(s + t + 2);
        } else {
#pragma unroll 1
          for (int i = 0; i < 2 && s + t + i < tile.steps; ++i) {
            multiply_tile(args, warp, stage, t + i, slice + i * kSlices, padding, group);
            finish_tile(s + t + i + 1);
          }
        }
        if (t == 0 && s > 0) Pipe::release(before);  // its last product was waited for above
      }
      before = cursor.stage;
      cursor.advance();
    }
    dev::wgmma_wait<0>();
    fence_sums(group);
    if (tile.steps > 0) Pipe::release(before);
    if (args.split.count == 1)
      Pipe::template store<TokenScaler, false>(args, tile, warp, 0, group.k_chunk[0]);
  }
  static_assert(Pipe::kStageTiles % 2 == 0, "two products are in flight");

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
};

// The record of the kernels with and without zero points of weights.
template <Int4Int8Sm90aConfig kConfig>
CudaKernel int4_int8_sm90a_kernel(const char* name) {
  using Kernel = Int4Int8Sm90a<kConfig, true>;
  return {.name = name,
          .arch = 90,
          .tile_m = Kernel::kTokens,
          .tile_n = Kernel::kFeatures,
          .step_k = sparse24_tile::kTileK,
          .blocks_per_sm = 1,
          .smem_bytes = Kernel::Pipe::kSmemBytes,
          .cluster = kConfig.cluster,
          .macs_per_cycle = macs_per_cycle(Kernel::kTokens, 1, 4),
          .step_cycles = 40,
          .is_persistent = true,
          .launch = &launch_by_zeros<Kernel, Int4Int8Sm90a<kConfig, false>>};
}

}  // namespace lamina::matmul_sparse24
