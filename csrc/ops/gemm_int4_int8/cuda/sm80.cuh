// gemm_int4_int8 / sm80:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks: gemm/cuda/sm80_features.cuh. The sums of
//            activations times codes (unsigned bytes) are exact integers. When a group ends, the warp scales its sums
//            and adds them to the k chunk, so the result does not depend on the tile or on the split of k. The end of
//            a k chunk: gemm/cuda/k_chunk.cuh. A single group may be split anywhere: its sums stay integers until the
//            reduction
// Layouts    a, its sums of groups: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/int4.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -and, shift-> mma m16n8k32 u8 s8 -> s32
//            -gemm/cuda/group_end.cuh-> f32 -> out
// Budget     regs <= 255; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA, LDGSTS, LDSM
// Requires   w at a multiple of 16 bytes; the workspace is aligned by construction
// Source     own; codes as bytes are as in QServe, Lin et al., arXiv:2405.04532.
//            Reference: tests/reference/gemm_int4.py
#pragma once

#include "device/device.h"
#include "gemm/cuda/group_end.cuh"
#include "gemm/cuda/sm80_features.cuh"
#include "gemm/cuda/token_scaler.cuh"
#include "layout/int4.h"
#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::gemm_int4_int8 {

struct Sm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // warps along the rows and the columns of a block
  int stages;            // stages of the ring
  int blocks_per_sm;
};

template <Sm80Config kConfig>
struct Sm80 {
  static constexpr int kTiles = kConfig.block_n / kConfig.warps_n / int4::kTileN;
  static constexpr int kTokenGroups = kConfig.block_m / kConfig.warps_m / 8;
  using Groups = GroupEnd<kConfig.block_m, kConfig.block_n, kSlices, kTiles, kTokenGroups>;
  // The zero points of the tokens lie behind the ring.
  using Pipe = Sm80Features<Sm80Shape{.block_m = kConfig.block_m,
                                      .block_n = kConfig.block_n,
                                      .warps_m = kConfig.warps_m,
                                      .warps_n = kConfig.warps_n,
                                      .warps_k = 1,
                                      .step_tiles = 1,
                                      .stages = kConfig.stages,
                                      .a_bytes = 1,
                                      .tile_bytes = int4::kTileBytes,
                                      .group_bytes = Groups::kStageBytes},
                            TokenScaler, kConfig.block_m * 4>;
  using Place = typename Pipe::Place;

  static constexpr const char* kName = "gemm_int4_int8_sm80";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = kConfig.blocks_per_sm;
  static constexpr int kSmemBytes = Pipe::kSmemBytes;

  struct Args {
    CudaParams p;
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

  // The products of one slice, or of two slices, whose codes are words `word` and `word + 1` of each tile.
  LAMINA_DEVICE static void multiply_slices(const Args& args, const Place& at,
                                            const std::byte* stage, int slice, bool is_pair,
                                            const typename Pipe::Codes& codes, int word,
                                            Groups& group) {
    typename Pipe::Tokens b;
    Pipe::load_tokens(at, stage, slice + (is_pair ? dev::lane() / 8 % 2 : 0), b);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      uint32_t a[4];
      Groups::unpack(codes[i].x[word], is_pair ? codes[i].x[word + 1] : 0, a);
      if (args.p.a_zero_point.is_given()) group.add_codes(i, a);
#pragma unroll
      for (int j = 0; j < kTokenGroups; ++j) {
        const uint32_t tokens[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
        dev::mma_m16n8k32_u8s8(group.sums[i][j], a, tokens);
      }
    }
  }

  LAMINA_DEVICE static void multiply_step(const Args& args, const Place& at, int step,
                                          const std::byte* stage, Groups& group) {
    typename Pipe::Codes codes;
    Pipe::load_codes(at, stage, 0, codes);
    group.row = 0;
    int end = args.groups.end_of(group.index) - step * kSlices;
#pragma unroll 1
    for (int slice = 0; slice < kSlices;) {
      if (slice == 0 && end >= kSlices) {
        multiply_slices(args, at, stage, 0, true, codes, 0, group);
        multiply_slices(args, at, stage, 2, true, codes, 2, group);
        slice = kSlices;
      } else {  // a group ends within the tile
        const int left = (end < kSlices ? end : kSlices) - slice;
        const bool is_pair = left >= 2;
        multiply_slices(args, at, stage, slice, is_pair, codes, 0, group);
        slice += is_pair ? 2 : 1;
#pragma unroll
        for (int i = 0; i < kTiles; ++i)  // registers have no index
          codes[i] = is_pair ? dev::U32x4{codes[i].x[2], codes[i].x[3], 0, 0}
                             : dev::U32x4{codes[i].x[1], codes[i].x[2], codes[i].x[3], 0};
      }
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

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Sm80>(args); }

  static Status start(const CudaParams& params, const Split& split, int max_blocks, void* stream) {
    return Pipe::template launch<Sm80>(
        "gemm_int4_int8", {params, split, GroupEndArgs::of(params, split), {}}, max_blocks, stream);
  }
};

template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  using Kernel = Sm80<kConfig>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = int4::kTileK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = 2048,
          .step_cycles = 100,
          .launch = &launch_as<CudaParams, &Kernel::start>};
}

}  // namespace lamina::gemm_int4_int8
