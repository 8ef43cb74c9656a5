// The loop over k of the products on f16 and bf16 activations on sm_80. The op gives the weights and their products.
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks: gemm/cuda/sm80_features.cuh. A k chunk is
//            one chain of products in the order of k, so the result does not depend on the tile or on the split of k.
//            The end of a k chunk: gemm/cuda/k_chunk.cuh
// Data path  gmem -cp.async-> smem ring -> the products of the op -> f32 -> out
// Requires   no alignment: rows of a that do not allow 16-byte copies are copied in 4-byte words or in bytes
#pragma once

#include "device/device.h"
#include "gemm/cuda/half_params.h"
#include "gemm/cuda/int4_groups.cuh"
#include "gemm/cuda/sm80_features.cuh"
#include "gemm/float_sums.h"

namespace lamina::gemm {

struct HalfSm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // warps along the rows and the columns of a block
  int step_tiles;        // tiles of 64 k in a step of the ring
  int stages;
  int blocks_per_sm;
};

// Weights: T is the dtype of a. Groups and group_args() are those of gemm/cuda/int4_groups.cuh.
// Products<HalfSm80>::multiply_step() adds the products of a ring step to the sums.
template <HalfSm80Config kConfig, class Weights>
struct HalfSm80 {
  using Params = typename Weights::Params;
  static constexpr int kStepTiles = kConfig.step_tiles, kStepSlices = kStepTiles * kSlices;
  using Groups = typename Weights::template Groups<kConfig.block_n, kStepSlices>;
  using Pipe = Sm80Features<Sm80Shape{.block_m = kConfig.block_m,
                                      .block_n = kConfig.block_n,
                                      .warps_m = kConfig.warps_m,
                                      .warps_n = kConfig.warps_n,
                                      .warps_k = 1,
                                      .step_tiles = kStepTiles,
                                      .stages = kConfig.stages,
                                      .a_bytes = 2,
                                      .tile_bytes = Weights::kTileBytes,
                                      .group_bytes = Groups::kBytes},
                            Unscaled>;
  using Place = typename Pipe::Place;
  static_assert(kChunkK % Pipe::kStepK == 0);

  static constexpr const char* kName = Weights::kName;
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

  using Group = typename Groups::template Reached<Pipe::kTiles>;
  using Sums = typename Pipe::Sums;

  LAMINA_DEVICE static void compute(const Args& args, const Place& at) {
    using Products = typename Weights::template Products<HalfSm80>;
    Sums sums;
    const auto end_k_chunk = Pipe::k_chunk_end(sums, static_cast<int>(kChunkK / Pipe::kStepK));
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Group group;
    group.start(args.groups, at.first_step * kStepSlices);
    Pipe::template for_steps<Copies>(args, at, [&](int step, const std::byte* stage) {
      Products::multiply_step(args, at, step, stage, group, sums);
      end_k_chunk(args.split, step + 1, at.is_last(step),
                  [&](int64_t partial) { Pipe::template store<true>(args, at, partial, sums); });
    });
    if (args.split.count == 1) Pipe::template store<false>(args, at, 0, sums);
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<HalfSm80>(args); }

  static Status start(const Params& params, const Split& split, int max_blocks, void* stream) {
    return Pipe::template launch<HalfSm80>(
        Weights::kOp, {params, split, Weights::group_args(params), a_copy_bytes(params), {}},
        max_blocks, stream);
  }
};

// The record of the kernels for both dtypes of a; Weights: a template over the dtype.
template <HalfSm80Config kConfig, template <class T> class Weights>
CudaKernel half_sm80_kernel(const char* name) {
  using Kernel = HalfSm80<kConfig, Weights<F16>>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = Kernel::Pipe::kStepK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = Weights<F16>::kMacsPerCycle,
          .step_cycles = 100,
          .launch = &launch_by_dtype<Kernel, HalfSm80<kConfig, Weights<BF16>>>};
}

}  // namespace lamina::gemm
