// matmul_sparse24_int4_int8 / sm90a:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  gemm/cuda/int4_int8_sm90a.cuh, with wgmma.sp, which skips the half of the products whose weight is not kept.
//            With zero points a second product, of ones, sums the activations that each feature keeps. A single group
//            without zero points may be split anywhere
// Layouts    a: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/sparse24_tile.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 8-byte and 4-byte loads -prmt, lop3-> its register
//            operand and metadata -> s32 -> f32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: IGMMA.SP, UTMALDG, LDGSTS
// Source     own; warp roles and ring as in gemm_int4's sm90a. Reference: tests/reference/sparse24.py
#pragma once

#include "gemm/cuda/int4_int8_sm90a.cuh"
#include "ops/matmul_sparse24/cuda/int4_int8_weights.cuh"

namespace lamina::matmul_sparse24 {

using Int4Int8Sm90aConfig = gemm::Int4Int8Sm90aConfig;

template <bool kHasZeros>
struct Int4Int8Sm90aWeights : Int4Int8Weights<kHasZeros> {
  static constexpr const char* kName = "matmul_sparse24_int4_int8_sm90a";
  static constexpr int macs_per_cycle(int tokens) {
    return matmul_sparse24::macs_per_cycle(tokens, 1, 4);
  }

  // Kernel: Int4Int8Sm90a<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Tile = typename Kernel::Tile;
    using Groups = typename Kernel::Groups;
    static_assert(Pipe::kStageTiles % 2 == 0, "two products are in flight");

    using Ones = uint32_t[4];  // operand a of the products of ones

    uint32_t padding;
    Int8Operand operands[2];
    Ones ones;

    LAMINA_DEVICE Products(const auto& args, const Tile& tile, int warp)
        : padding(padding_of(tile.n0 / sparse24_tile::kTileN + warp, args.p.problem.n)) {
      set_ones(ones);
    }

    LAMINA_DEVICE static void set_ones(Ones& ones) {
#pragma unroll
      for (int i = 0; i < 4; ++i) ones[i] = 0x01010101;
    }

    // The product of slices [begin, end) of a tile, a wgmma group of its own.
    LAMINA_DEVICE void multiply(const auto& args, const std::byte* w, uint64_t tokens, int begin,
                                int end, Groups& group, Int8Operand& operand, Ones& own_ones) {
      unpack_codes(load_codes(w), operand.a);
      operand.metadata = s8_metadata(load_metadata(4, w) | padding);
      if (end - begin < kSlices) mask_slices(operand.a, begin, end);
      if (args.p.a_zero_point.is_given()) group.add_codes(0, operand.a);
      dev::wgmma_fence_registers(operand.a);
      if constexpr (kHasZeros) dev::wgmma_fence_registers(own_ones);
      dev::wgmma_fence();
      dev::wgmma_sparse_m64k64_s8<Kernel::kTokens>(Kernel::flat(group.sums), operand.a, tokens,
                                                   operand.metadata, !group.is_new);
      if constexpr (kHasZeros)
        dev::wgmma_sparse_m64k64_s8<Kernel::kTokens>(Kernel::flat(group.kept), own_ones, tokens,
                                                     operand.metadata, !group.is_new);
      dev::wgmma_commit();
      group.is_new = false;
      group.slices += end - begin;
    }

    // The products of two tiles within one group, without zero points: with them the sums leave no registers for a second
    // product in flight. Each has registers of its own, and waits only for the product that used them two tiles before.
    LAMINA_DEVICE void multiply_pair(const auto& args, int warp, const std::byte* stage, int tile,
                                     Groups& group) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        dev::wgmma_wait<1>();
        multiply(args, Pipe::tile_at(stage, warp, tile + i), Pipe::tokens_of(stage, tile + i), 0,
                 kSlices, group, operands[i], ones);
      }
    }

    // The products of one tile, from slice `slice` on, in which a group may end. Products are waited for one by one.
    LAMINA_DEVICE void multiply_tile(const auto& args, int warp, const std::byte* stage, int tile,
                                     int slice, Groups& group) {
      int end = args.groups.end_of(group.index) - slice;
#pragma unroll 1
      for (int s = 0; s < kSlices;) {
        const int next = end < kSlices ? end : kSlices;
        Int8Operand own;
        Ones own_ones;
        set_ones(own_ones);
        mask_slices(own_ones, s, next);
        multiply(args, Pipe::tile_at(stage, warp, tile), Pipe::tokens_of(stage, tile), s, next,
                 group, own, own_ones);
        dev::wgmma_wait<0>();
        Kernel::fence_sums(group);
        s = next;
        if (s != end) continue;
        Kernel::end_group(args, warp, stage, group);
        end = args.groups.end_of(group.index) - slice;
      }
    }

    LAMINA_DEVICE void multiply_stage(const auto& args, const Tile& tile, int s, int warp,
                                      const std::byte* stage, Groups& group, const auto& release,
                                      const auto& finish_tile) {
#pragma unroll
      for (int t = 0; t < Pipe::kStageTiles; t += 2) {
        if (t > 0 && s + t >= tile.steps) break;
        const int slice = (static_cast<int>(tile.first_step) + s + t) * kSlices;
        const int end = args.groups.end_of(group.index) - slice;
        if (!kHasZeros && end >= 2 * kSlices && s + t + 1 < tile.steps) {
          multiply_pair(args, warp, stage, t, group);
          if (end == 2 * kSlices) Kernel::end_group(args, warp, stage, group);
          finish_tile(s + t + 2);
        } else {
#pragma unroll 1
          for (int i = 0; i < 2 && s + t + i < tile.steps; ++i) {
            multiply_tile(args, warp, stage, t + i, slice + i * kSlices, group);
            finish_tile(s + t + i + 1);
          }
        }
        if (t == 0) release();
      }
    }
  };
};

// The record of the kernels with and without zero points of weights.
template <Int4Int8Sm90aConfig kConfig>
CudaKernel int4_int8_sm90a_kernel(const char* name) {
  using Kernel = Int4Int8Sm90a<kConfig, Int4Int8Sm90aWeights<true>>;
  using Without = Int4Int8Sm90a<kConfig, Int4Int8Sm90aWeights<false>>;
  return Kernel::record(name, &launch_by_zeros<Kernel, Without>);
}

}  // namespace lamina::matmul_sparse24
