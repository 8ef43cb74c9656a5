// matmul_sparse24 and matmul_sparse24_int4 / sm90a:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p])
//
// Algorithm  gemm/cuda/half_sm90a.cuh, with kept weights, or codes that become weights, in wgmma.sp's register operand; the
//            metadata is one register for 64 k
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/sparse24_tile.h.  scales, zero points [groups,n].  out [m,n]
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 16-byte loads, or 8-byte loads ->
//            gemm/cuda/int4_dequantize.cuh -> its register operand -> f32; then smem rows -> out
// Source     own; warp roles and ring as in gemm_int4's sm90a. Reference: tests/reference/sparse24.py
#pragma once

#include <algorithm>
#include <type_traits>

#include "gemm/cuda/half_sm90a.cuh"
#include "layout/matrix_descriptor.h"
#include "ops/matmul_sparse24/cuda/float_weights.cuh"

namespace lamina::matmul_sparse24 {

template <int kBits, class T>
struct FloatSm90aWeights : FloatWeights<kBits, T> {
  using FloatWeights<kBits, T>::kHasGroups;
  static constexpr const char* kName =
      kHasGroups ? "matmul_sparse24_int4_sm90a" : "matmul_sparse24_sm90a";
  static constexpr int macs_per_cycle(int tokens) {
    return matmul_sparse24::macs_per_cycle(tokens, kProducts, kBits);
  }

  // Kernel: HalfSm90a<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Group = typename Kernel::Group;
    using Sums = typename Kernel::Sums;

    // The registers of one product. Each of kSets products in flight has its own.
    static constexpr int kTileSets = std::min(Pipe::kStageTiles, 2), kSets = kProducts * kTileSets;
    struct Operand {
      uint32_t a[4], metadata;
    };

    // The products of the stage before have been waited for once this stage has started as many as are in flight.
    static constexpr int kReleaseTile = kTileSets - 1;
    static constexpr bool kStopsAtK = false;

    uint32_t padding;
    Operand operands[kTileSets][kProducts];

    LAMINA_DEVICE Products(const auto& args, const typename Kernel::Tile& tile, int warp)
        : padding(padding_of(tile.n0 / sparse24_tile::kTileN + warp, args.p.problem.n)) {}

    // A tile of w. Past k its products are of zeros.
    struct Weights {
      const std::byte* tile;
      uint32_t metadata;
    };
    LAMINA_DEVICE Weights load(const std::byte* stage, int warp, int t, bool is_within_k) const {
      const std::byte* const tile = Pipe::tile_at(stage, warp, t);
      return {tile, load_metadata(kBits, tile) | (is_within_k ? padding : kPadding)};
    }

    // sums[64,kTokens] += operand[64,32] * tokens[32,kTokens], for product kProduct of a tile.
    template <int kProduct>
    LAMINA_DEVICE static void start_product(Sums& sums, Operand& operand, uint64_t tokens) {
      const uint64_t b = advance_descriptor(tokens, kProduct * kProductK * 2);
      dev::wgmma_fence_registers(operand.a);
      dev::wgmma_fence();
      if constexpr (std::is_same_v<T, F16>) {
        dev::wgmma_sparse_m64k32_f16<Kernel::kTokens, kProduct>(sums, operand.a, b,
                                                                operand.metadata, true);
      } else {
        dev::wgmma_sparse_m64k32_bf16<Kernel::kTokens, kProduct>(sums, operand.a, b,
                                                                 operand.metadata, true);
      }
      dev::wgmma_commit();
    }

    // Each product is a wgmma group of its own, and waits only for the product that used its registers kSets products
    // before.
    LAMINA_DEVICE void multiply_tile(const Weights& w, uint64_t tokens, int t, const Group& group,
                                     Sums& sums) {
      Operand(&mine)[kProducts] = operands[t % kTileSets];
      [[maybe_unused]] dev::U32x2 codes;
      if constexpr (kHasGroups) codes = load_codes(w.tile);
      const auto make = [&](int product) {
        dev::wgmma_wait<kSets - 1>();
        if constexpr (kHasGroups) {
          group.of[0].weights(codes.x[product], mine[product].a);
        } else {
          load_values(w.tile, product, mine[product].a);
        }
        mine[product].metadata = w.metadata;
      };
      make(0);
      start_product<0>(sums, mine[0], tokens);
      make(1);
      start_product<1>(sums, mine[1], tokens);
    }

    // The tile starts at slice `slice`. While products are in flight no register may depend on a branch, so all weights
    // come first, and all products are waited for at the end.
    LAMINA_DEVICE static void multiply_edge(const auto& args, const Weights& w, uint64_t tokens,
                                            int slice, const auto& enter, Group& group,
                                            Sums& sums) {
      const int64_t left = args.p.problem.k - static_cast<int64_t>(slice) * kSliceK;
      const dev::U32x2 codes = load_codes(w.tile);
      Operand own[kProducts];
#pragma unroll
      for (int p = 0; p < kProducts; ++p) {
        if (group.end <= slice + 2 * p) enter();
        group.of[0].template half_of_weights<0>(codes.x[p], own[p].a);
        if (group.end <= slice + 2 * p + 1) enter();
        group.of[0].template half_of_weights<1>(codes.x[p], own[p].a);
        mask_weights(own[p].a,
                     static_cast<int>(std::min<int64_t>(left - p * kProductK, kProductK)));
        own[p].metadata = w.metadata;
      }
      start_product<0>(sums, own[0], tokens);
      start_product<1>(sums, own[1], tokens);
      dev::wgmma_wait<0>();
    }
  };
};

template <class T>
using ValuesSm90a = FloatSm90aWeights<16, T>;
template <class T>
using CodesSm90a = FloatSm90aWeights<4, T>;

}  // namespace lamina::matmul_sparse24
