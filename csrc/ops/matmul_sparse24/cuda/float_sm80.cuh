// matmul_sparse24 and matmul_sparse24_int4 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p])
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks: gemm/cuda/sm80_features.cuh. An mma.sp
//            skips the half of the products whose weight is not kept. A k chunk is one chain of products in the order
//            of k, so the result does not depend on the tile or on the split of k. The end of a k chunk:
//            gemm/cuda/k_chunk.cuh
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/sparse24_tile.h.  scales, zero points [groups,n].  out [m,n]
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte, 8-byte and 4-byte loads (values, codes, metadata)-> regs
//            -gemm/cuda/int4_dequantize.cuh (codes)-> mma.sp m16n8k32 -> f32 -> out
// Requires   no alignment: rows of a that do not allow 16-byte copies are copied in 4-byte words or in bytes
// Source     own; codes as mma.sp's operand a as in Sparse-Marlin, Frantar et al., arXiv:2408.11743.
//            Reference: tests/reference/sparse24.py
#pragma once

#include "gemm/cuda/sm80_features.cuh"
#include "ops/matmul_sparse24/cuda/float_weights.cuh"
#include "ops/matmul_sparse24/cuda/run.h"

namespace lamina::matmul_sparse24 {

struct FloatSm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // warps along the rows and the columns of a block
  int step_tiles;        // tiles of 64 k in a step of the ring
  int stages;
  int blocks_per_sm;
};

template <FloatSm80Config kConfig, class Weights>
struct FloatSm80 {
  using T = typename Weights::T;
  static constexpr int kStepSlices = kConfig.step_tiles * kSlices;
  using Groups = typename Weights::template Groups<kConfig.block_n, kStepSlices>;
  using Pipe = Sm80Features<Sm80Shape{.block_m = kConfig.block_m,
                                      .block_n = kConfig.block_n,
                                      .warps_m = kConfig.warps_m,
                                      .warps_n = kConfig.warps_n,
                                      .warps_k = 1,
                                      .step_tiles = kConfig.step_tiles,
                                      .stages = kConfig.stages,
                                      .a_bytes = 2,
                                      .tile_bytes = sparse24_tile::tile_bytes(Weights::kBits),
                                      .group_bytes = Groups::kBytes},
                            Unscaled>;
  using Place = typename Pipe::Place;
  static constexpr int kTiles = Pipe::kTiles, kTokenGroups = Pipe::kTokenGroups;
  static constexpr int kStepK = Pipe::kStepK;
  static_assert(kChunkK % kStepK == 0);

  static constexpr const char* kName =
      Weights::kIsInt4 ? "matmul_sparse24_int4_sm80" : "matmul_sparse24_sm80";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = kConfig.blocks_per_sm;
  static constexpr int kSmemBytes = Pipe::kSmemBytes;

  struct Args {
    HalfParams p;
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

  // The part of a step that all products of a tile share.
  struct Tile {
    const Place& at;
    const std::byte* stage;
    int t;
    uint32_t metadata[kTiles];

    LAMINA_DEVICE const std::byte* of(int i) const { return Pipe::tile_at(at, stage, i, t); }
  };

  // Product kProduct of a tile; operand(i, a) makes operand a of the i-th column of tiles.
  template <int kProduct>
  LAMINA_DEVICE static void multiply_product(const Tile& tile, const auto& operand, Sums& sums) {
    constexpr int kChunks = kProductK * 2 / swizzle::kChunkBytes;
    typename Pipe::WideTokens tokens;
    Pipe::load_tokens(tile.at, tile.stage, (tile.t * kProducts + kProduct) * kChunks, tokens);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      uint32_t a[4];
      operand(i, a);
#pragma unroll
      for (int j = 0; j < kTokenGroups; ++j)
        multiply<T, kProduct>(sums[i][j], a, tokens[j], tile.metadata[i]);
    }
  }

  // The same where a group or k ends within the tile, which starts at slice `slice`; `left` of its k exist.
  template <int kProduct>
  LAMINA_DEVICE static void multiply_edge(const Tile& tile, const dev::U32x2 (&codes)[kTiles],
                                          int slice, int left, const auto& enter, Group& group,
                                          Sums& sums) {
    const int valid = left - kProduct * kProductK;
    if (valid <= 0) return;
    uint32_t a[kTiles][4];
    if (group.end <= slice + 2 * kProduct) enter();
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      group.of[i].template half_of_weights<0>(codes[i].x[kProduct], a[i]);
    if (group.end <= slice + 2 * kProduct + 1) enter();
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      group.of[i].template half_of_weights<1>(codes[i].x[kProduct], a[i]);
      mask_weights(a[i], valid);
    }
    multiply_product<kProduct>(
        tile,
        [&](int i, uint32_t (&to)[4]) {
#pragma unroll
          for (int r = 0; r < 4; ++r) to[r] = a[i][r];
        },
        sums);
  }

  // The products of a tile of codes that starts at slice `slice`.
  LAMINA_DEVICE static void multiply_codes(const Args& args, const Tile& tile, int slice,
                                           const auto& enter, Group& group, Sums& sums) {
    dev::U32x2 codes[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) codes[i] = load_codes(tile.of(i));
    const int64_t left = args.p.problem.k - static_cast<int64_t>(slice) * kSliceK;
    if (group.end <= slice) enter();
    if (group.end - slice >= kSlices && left >= sparse24_tile::kTileK) {
      const auto operand = [&](int product) {
        return
            [&, product](int i, uint32_t (&a)[4]) { group.of[i].weights(codes[i].x[product], a); };
      };
      multiply_product<0>(tile, operand(0), sums);
      multiply_product<1>(tile, operand(1), sums);
    } else {
      const int valid =
          left < sparse24_tile::kTileK ? static_cast<int>(left) : sparse24_tile::kTileK;
      multiply_edge<0>(tile, codes, slice, valid, enter, group, sums);
      multiply_edge<1>(tile, codes, slice, valid, enter, group, sums);
    }
  }

  LAMINA_DEVICE static void multiply_step(const Args& args, const Place& at, int step,
                                          const std::byte* stage, Group& group, Sums& sums) {
    const int64_t column = at.n0 / sparse24_tile::kTileN + at.warp_n * kTiles;
    const int begin = step * kStepSlices;
    group.begin_stage(begin);
#pragma unroll 1
    for (int t = 0; t < kConfig.step_tiles; ++t) {
      if (t > 0 && step * kConfig.step_tiles + t >= args.units.tiles_k) break;  // past k
      Tile tile{at, stage, t, {}};
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        tile.metadata[i] =
            load_metadata(Weights::kBits, tile.of(i)) | padding_of(column + i, args.p.problem.n);
      if constexpr (Weights::kIsInt4) {
        const auto enter = [&] {
          group.enter(args.groups, stage + Pipe::kGroupsAt,
                      at.warp_n * kTiles * sparse24_tile::kTileN + dev::lane() / 4 * 2);
        };
        multiply_codes(args, tile, begin + t * kSlices, enter, group, sums);
      } else {
        const auto operand = [&](int product) {
          return [&, product](int i, uint32_t (&a)[4]) { load_values(tile.of(i), product, a); };
        };
        multiply_product<0>(tile, operand(0), sums);
        multiply_product<1>(tile, operand(1), sums);
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

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<FloatSm80>(args); }

  static Status start(const HalfParams& params, const Split& split, int max_blocks, void* stream) {
    return Pipe::template launch<FloatSm80>(
        kName, {params, split, Weights::group_args(params), a_copy_bytes(params), {}}, max_blocks,
        stream);
  }
};

// The record of the kernels for both dtypes of a.
template <int kBits, FloatSm80Config kConfig>
CudaKernel float_sm80_kernel(const char* name) {
  using Kernel = FloatSm80<kConfig, FloatWeights<kBits, F16>>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = Kernel::kStepK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = 2048,
          .step_cycles = 100,
          .launch = &launch_by_dtype<Kernel, FloatSm80<kConfig, FloatWeights<kBits, BF16>>>};
}

}  // namespace lamina::matmul_sparse24
