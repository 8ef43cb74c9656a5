// gemm_int4 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks: gemm/cuda/sm80_features.cuh. A k chunk is
//            one chain of products in the order of k, so the result does not depend on the tile or on the split of k.
//            The end of a k chunk: gemm/cuda/k_chunk.cuh
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/int4.h.  scales, zero points [groups,n].  out [m,n] row-major
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -gemm/cuda/int4_dequantize.cuh->
//            mma m16n8k16 -> f32 -> out
// Budget     regs <= 232; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: HMMA, LDGSTS, LDSM
// Requires   no alignment: rows of a that do not allow 16-byte copies are copied in 4-byte words or in bytes
// Source     own. Reference: tests/reference/gemm_int4.py
#pragma once

#include "device/device.h"
#include "gemm/cuda/int4_groups.cuh"
#include "gemm/cuda/sm80_features.cuh"
#include "layout/int4.h"
#include "ops/gemm_int4/cuda/products.cuh"
#include "ops/gemm_int4/cuda/run.h"

namespace lamina::gemm_int4 {

struct Sm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // warps along the rows and the columns of a block
  int step_tiles;        // tiles of 64 k in a step of the ring
  int stages;
  int blocks_per_sm;
};

template <Sm80Config kConfig, class T>
struct Sm80 {
  static constexpr int kStepSlices = kConfig.step_tiles * kSlices;
  using Groups = StageGroups<T, kConfig.block_n, kStepSlices>;
  using Pipe = Sm80Features<Sm80Shape{.block_m = kConfig.block_m,
                                      .block_n = kConfig.block_n,
                                      .warps_m = kConfig.warps_m,
                                      .warps_n = kConfig.warps_n,
                                      .warps_k = 1,
                                      .step_tiles = kConfig.step_tiles,
                                      .stages = kConfig.stages,
                                      .a_bytes = 2,
                                      .tile_bytes = int4::kTileBytes,
                                      .group_bytes = Groups::kBytes},
                            Unscaled>;
  using Place = typename Pipe::Place;
  static constexpr int kTiles = Pipe::kTiles, kTokenGroups = Pipe::kTokenGroups;
  static constexpr int kStepK = Pipe::kStepK;
  static_assert(kChunkK % kStepK == 0);

  static constexpr const char* kName = "gemm_int4_sm80";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = kConfig.blocks_per_sm;
  static constexpr int kSmemBytes = Pipe::kSmemBytes;

  struct Args {
    Params p;
    Split split;
    GroupArgs groups;
    int a_copy_bytes;  // bytes of one copy of a: 16, 4 or 1
    Sm80Units units;

    constexpr int64_t row_bytes() const { return p.a_stride * 2; }
  };

  struct Copies {
    typename Pipe::Copies operands;
    typename Groups::Next group;

    LAMINA_DEVICE static Copies at(const Args& args, const Place& at) {
      return {Pipe::Copies::at(args, at),
              Groups::Next::at(args.groups, at.first_step * kStepSlices)};
    }
    LAMINA_DEVICE void start(const Args& args, const Place& at, int step, std::byte* stage) {
      operands.start_any_rows(args, step, stage);
      operands.start_tiles(args, step, stage);
      Groups::template load<kThreads>(args.groups, group, step * kStepSlices, at.n0,
                                      args.p.problem.n, dev::thread_index(),
                                      stage + Pipe::kGroupsAt);
      operands.advance();
    }
  };

  using Group = typename Groups::template Reached<kTiles>;
  using Sums = typename Pipe::Sums;

  // The products of 16 k, whose codes are word `word` of each tile. kIsMasked: only the first `valid` k exist.
  template <bool kIsMasked>
  LAMINA_DEVICE static void multiply_slice(const Place& at, const std::byte* stage, int slice,
                                           const typename Pipe::Codes& codes, int word, int valid,
                                           const Group& group, Sums& sums) {
    typename Pipe::Tokens b;
    Pipe::load_tokens(at, stage, slice * 2 + dev::lane() / 8 % 2, b);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      uint32_t a[4];
      group.of[i].weights(codes[i].x[word], a);
      if constexpr (kIsMasked) mask_weights(a, valid);
#pragma unroll
      for (int j = 0; j < kTokenGroups; ++j)
        multiply<T>(sums[i][j], a, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
  }

  LAMINA_DEVICE static void multiply_step(const Args& args, const Place& at, int step,
                                          const std::byte* stage, Group& group, Sums& sums) {
    const int begin = step * kStepSlices;
    group.begin_stage(begin);
    const auto enter_group = [&] {
      group.enter(args.groups, stage + Pipe::kGroupsAt,
                  at.warp_n * kTiles * int4::kTileN + dev::lane() / 4 * 2);
    };
#pragma unroll 1
    for (int t = 0; t < kConfig.step_tiles; ++t) {
      typename Pipe::Codes codes;
      Pipe::load_codes(at, stage, t, codes);
      const int first = t * kSlices;
      if (group.end <= begin + first) enter_group();
      const int64_t left = args.p.problem.k - static_cast<int64_t>(begin + first) * kSliceK;
      if (group.end - begin - first >= kSlices && left >= int4::kTileK) {
#pragma unroll
        for (int s = 0; s < kSlices; ++s)
          multiply_slice<false>(at, stage, first + s, codes, s, kSliceK, group, sums);
      } else {  // a group or k ends within the tile
        const int valid = left < int4::kTileK ? static_cast<int>(left) : int4::kTileK;
#pragma unroll 1
        for (int s = 0; s * kSliceK < valid; ++s) {
          if (group.end <= begin + first + s) enter_group();
          multiply_slice<true>(at, stage, first + s, codes, 0, valid - s * kSliceK, group, sums);
#pragma unroll
          for (int i = 0; i < kTiles; ++i)  // registers have no index
            codes[i] = {codes[i].x[1], codes[i].x[2], codes[i].x[3], 0};
        }
      }
    }
  }

  LAMINA_DEVICE static void compute(const Args& args, const Place& at) {
    Sums sums;
    const auto end_k_chunk = Pipe::k_chunk_end(sums, static_cast<int>(kChunkK / kStepK));
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Group group;
    group.start(args.groups, at.first_step * kStepSlices);
    Pipe::template for_steps<Copies>(args, at, [&](int step, const std::byte* stage) {
      multiply_step(args, at, step, stage, group, sums);
      end_k_chunk(args.split, step + 1, at.is_last(step),
                  [&](int64_t partial) { Pipe::template store<true>(args, at, partial, sums); });
    });
    if (args.split.count == 1) Pipe::template store<false>(args, at, 0, sums);
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Sm80>(args); }

  static Status start(const Params& params, const Split& split, int max_blocks, void* stream) {
    return Pipe::template launch<Sm80>(
        "gemm_int4", {params, split, GroupArgs::of(params), a_copy_bytes(params), {}}, max_blocks,
        stream);
  }
};

template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  using Kernel = Sm80<kConfig, F16>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = Kernel::kStepK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = 1024,
          .step_cycles = 100,
          .launch = &launch_by_dtype<Kernel, Sm80<kConfig, BF16>>};
}

}  // namespace lamina::gemm_int4
