// matmul_sparse24 and matmul_sparse24_int4 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p])
//
// Algorithm  gemm/cuda/half_sm80.cuh, with mma.sp, which skips the half of the products whose weight is not kept
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/sparse24_tile.h.  scales, zero points [groups,n].  out [m,n]
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte, 8-byte and 4-byte loads (values, codes, metadata)-> regs
//            -gemm/cuda/int4_dequantize.cuh (codes)-> mma.sp m16n8k32 -> f32 -> out
// Source     own; codes as mma.sp's operand a as in Sparse-Marlin, Frantar et al., arXiv:2408.11743.
//            Reference: tests/reference/sparse24.py
#pragma once

#include "gemm/cuda/half_sm80.cuh"
#include "ops/matmul_sparse24/cuda/float_weights.cuh"

namespace lamina::matmul_sparse24 {

template <int kBits, class T>
struct FloatSm80Weights : FloatWeights<kBits, T> {
  using FloatWeights<kBits, T>::kHasGroups;
  static constexpr const char* kName =
      kHasGroups ? "matmul_sparse24_int4_sm80" : "matmul_sparse24_sm80";
  static constexpr int kMacsPerCycle = 2048;

  // Kernel: HalfSm80<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Place = typename Kernel::Place;
    using Group = typename Kernel::Group;
    using Sums = typename Kernel::Sums;
    static constexpr int kTiles = Pipe::kTiles, kTokenGroups = Pipe::kTokenGroups;

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
    LAMINA_DEVICE static void multiply_codes(const auto& args, const Tile& tile, int slice,
                                             const auto& enter, Group& group, Sums& sums) {
      dev::U32x2 codes[kTiles];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) codes[i] = load_codes(tile.of(i));
      const int64_t left = args.p.problem.k - static_cast<int64_t>(slice) * kSliceK;
      if (group.end <= slice) enter();
      if (group.end - slice >= kSlices && left >= sparse24_tile::kTileK) {
        const auto operand = [&](int product) {
          return [&, product](int i, uint32_t (&a)[4]) {
            group.of[i].weights(codes[i].x[product], a);
          };
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

    LAMINA_DEVICE static void multiply_step(const auto& args, const Place& at, int step,
                                            const std::byte* stage, Group& group, Sums& sums) {
      const int64_t column = at.n0 / sparse24_tile::kTileN + at.warp_n * kTiles;
      const int begin = step * Kernel::kStepSlices;
      group.begin_stage(begin);
#pragma unroll 1
      for (int t = 0; t < Kernel::kStepTiles; ++t) {
        if (t > 0 && step * Kernel::kStepTiles + t >= args.units.tiles_k) break;  // past k
        Tile tile{at, stage, t, {}};
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          tile.metadata[i] =
              load_metadata(kBits, tile.of(i)) | padding_of(column + i, args.p.problem.n);
        if constexpr (kHasGroups) {
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
  };
};

template <class T>
using ValuesSm80 = FloatSm80Weights<16, T>;
template <class T>
using CodesSm80 = FloatSm80Weights<4, T>;

}  // namespace lamina::matmul_sparse24
