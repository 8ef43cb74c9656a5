// matmul_sparse24_int4_int8 / sm80:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks: gemm/cuda/sm80_features.cuh. An mma.sp
//            skips the half of the products whose weight is not kept. Sums are exact integers. When a group ends, the
//            warp scales its sums and adds them to the k chunk (gemm/cuda/group_end.cuh), so the result does not depend
//            on the tile or on the split of k. With zero points a second product, of ones, sums the activations that
//            each feature keeps. A single group without zero points may be split anywhere
// Layouts    a: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/sparse24_tile.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 8-byte and 4-byte loads (codes, metadata)-> regs -prmt, lop3->
//            mma.sp m16n8k64 s8 -> s32 -> f32 -> out
// Budget     regs <= 255; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA.SP, LDGSTS, LDSM
// Requires   w at a multiple of 16 bytes; the workspace is aligned by construction
// Source     own. Reference: tests/reference/sparse24.py
#pragma once

#include "gemm/cuda/sm80_features.cuh"
#include "gemm/cuda/token_scaler.cuh"
#include "ops/matmul_sparse24/cuda/int4_int8_weights.cuh"

namespace lamina::matmul_sparse24 {

struct Int4Int8Sm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // warps along the rows and the columns of a block
  int stages;            // stages of the ring
  int blocks_per_sm;
};

template <Int4Int8Sm80Config kConfig, bool kHasZeros>
struct Int4Int8Sm80 {
  static constexpr int kTiles = kConfig.block_n / kConfig.warps_n / sparse24_tile::kTileN;
  static constexpr int kTokenGroups = kConfig.block_m / kConfig.warps_m / 8;
  using Groups = GroupEnd<kConfig.block_m, kConfig.block_n, kSlices, kTiles, kTokenGroups, true,
                          kHasZeros ? Codes::kSparseWithZeros : Codes::kSparse>;
  // The zero points of the tokens lie behind the ring.
  using Pipe = Sm80Features<Sm80Shape{.block_m = kConfig.block_m,
                                      .block_n = kConfig.block_n,
                                      .warps_m = kConfig.warps_m,
                                      .warps_n = kConfig.warps_n,
                                      .warps_k = 1,
                                      .step_tiles = 1,
                                      .stages = kConfig.stages,
                                      .a_bytes = 1,
                                      .tile_bytes = sparse24_tile::tile_bytes(4),
                                      .group_bytes = Groups::kStageBytes},
                            TokenScaler, kConfig.block_m * 4>;
  using Place = typename Pipe::Place;

  static constexpr const char* kName = "matmul_sparse24_int4_int8_sm80";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = kConfig.blocks_per_sm;
  static constexpr int kSmemBytes = Pipe::kSmemBytes;

  struct Args {
    Int4Int8Operands p;
    Split split;
    GroupEndArgs groups;
    Sm80Units units;

    constexpr int64_t row_bytes() const { return units.tiles_k * int64_t{sparse24_tile::kTileK}; }
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

  // The products of slices [begin, end) of the tile of a step.
  LAMINA_DEVICE static void multiply_slices(const Args& args, const Place& at,
                                            const std::byte* stage, int begin, int end,
                                            Groups& group) {
    const int64_t column = at.n0 / sparse24_tile::kTileN + at.warp_n * kTiles;
    typename Pipe::WideTokens tokens;
    Pipe::load_tokens(at, stage, 0, tokens);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const std::byte* const tile = Pipe::tile_at(at, stage, i, 0);
      Int8Operand operand;
      unpack_codes(load_codes(tile), operand.a);
      operand.metadata =
          s8_metadata(load_metadata(4, tile) | padding_of(column + i, args.p.problem.n));
      if (end - begin < kSlices) mask_slices(operand.a, begin, end);
      if (args.p.a_zero_point.is_given()) group.add_codes(i, operand.a);
#pragma unroll
      for (int j = 0; j < kTokenGroups; ++j)
        dev::mma_sparse_m16n8k64_s8(group.sums[i][j], operand.a, tokens[j], operand.metadata);
      if constexpr (kHasZeros) {
        uint32_t ones[4] = {0x01010101, 0x01010101, 0x01010101, 0x01010101};
        mask_slices(ones, begin, end);
#pragma unroll
        for (int j = 0; j < kTokenGroups; ++j)
          dev::mma_sparse_m16n8k64_s8(group.kept[i][j], ones, tokens[j], operand.metadata);
      }
    }
    group.slices += end - begin;
  }

  LAMINA_DEVICE static void multiply_step(const Args& args, const Place& at, int step,
                                          const std::byte* stage, Groups& group) {
    group.row = 0;
    int end = args.groups.end_of(group.index) - step * kSlices;
#pragma unroll 1
    for (int slice = 0; slice < kSlices;) {
      const int next = end < kSlices ? end : kSlices;
      multiply_slices(args, at, stage, slice, next, group);
      slice = next;
      if (slice == end) {
        group.end(args, at, stage + Pipe::kGroupsAt, tokens_zero());
        end = args.groups.end_of(group.index) - step * kSlices;
      }
    }
  }

  // [block_m] zero points, if a_zero_point is given.
  LAMINA_DEVICE static int32_t* tokens_zero() {
    return reinterpret_cast<int32_t*>(dev::dynamic_smem() + Pipe::kRingBytes);
  }

  LAMINA_DEVICE static void compute(const Args& args, const Place& at) {
    Groups group;
    group.begin(args.groups.of_slice(at.first_step * kSlices));
    const auto end_k_chunk = Pipe::k_chunk_end(group.k_chunk, args.groups.chunk_steps);
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Groups::template keep_zero_points<kThreads>(args.p, at.m0, dev::thread_index(), tokens_zero());
    Pipe::template for_steps<Copies>(args, at, [&](int step, const std::byte* stage) {
      multiply_step(args, at, step, stage, group);
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
        kName, {params, split, GroupEndArgs::of(params, split), {}}, max_blocks, stream);
  }
};

// The record of the kernels with and without zero points of weights.
template <Int4Int8Sm80Config kConfig>
CudaKernel int4_int8_sm80_kernel(const char* name) {
  using Kernel = Int4Int8Sm80<kConfig, true>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = sparse24_tile::kTileK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = 4096,
          .step_cycles = 100,
          .launch = &launch_by_zeros<Kernel, Int4Int8Sm80<kConfig, false>>};
}

}  // namespace lamina::matmul_sparse24
