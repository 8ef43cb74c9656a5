// matmul_sparse24_int4_int8 / sm80:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  gemm/cuda/int4_int8_sm80.cuh, with mma.sp, which skips the half of the products whose weight is not kept. With
//            zero points a second product, of ones, sums the activations that each feature keeps. A single group without
//            zero points may be split anywhere
// Layouts    a: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/sparse24_tile.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 8-byte and 4-byte loads (codes, metadata)-> regs -prmt, lop3->
//            mma.sp m16n8k64 s8 -> s32 -> f32 -> out
// Budget     regs <= 255; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA.SP, LDGSTS, LDSM
// Source     own. Reference: tests/reference/sparse24.py
#pragma once

#include "gemm/cuda/int4_int8_sm80.cuh"
#include "ops/matmul_sparse24/cuda/int4_int8_weights.cuh"

namespace lamina::matmul_sparse24 {

using Int4Int8Sm80Config = gemm::Int4Int8Sm80Config;

template <bool kHasZeros>
struct Int4Int8Sm80Weights : Int4Int8Weights<kHasZeros> {
  static constexpr const char* kName = "matmul_sparse24_int4_int8_sm80";
  static constexpr int kMacsPerCycle = 4096;

  // Kernel: Int4Int8Sm80<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Place = typename Kernel::Place;
    using Groups = typename Kernel::Groups;
    static constexpr int kTiles = Kernel::kTiles, kTokenGroups = Kernel::kTokenGroups;

    // The products of slices [begin, end) of the tile of a step.
    LAMINA_DEVICE static void multiply_slices(const auto& args, const Place& at,
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

    LAMINA_DEVICE static void multiply_step(const auto& args, const Place& at, int step,
                                            const std::byte* stage, Groups& group) {
      group.row = 0;
      int end = args.groups.end_of(group.index) - step * kSlices;
#pragma unroll 1
      for (int slice = 0; slice < kSlices;) {
        const int next = end < kSlices ? end : kSlices;
        multiply_slices(args, at, stage, slice, next, group);
        slice = next;
        if (slice == end) {
          group.end(args, at, stage + Pipe::kGroupsAt, Kernel::tokens_zero());
          end = args.groups.end_of(group.index) - step * kSlices;
        }
      }
    }
  };
};

// The record of the kernels with and without zero points of weights.
template <Int4Int8Sm80Config kConfig>
CudaKernel int4_int8_sm80_kernel(const char* name) {
  using Kernel = Int4Int8Sm80<kConfig, Int4Int8Sm80Weights<true>>;
  using Without = Int4Int8Sm80<kConfig, Int4Int8Sm80Weights<false>>;
  return Kernel::record(name, &launch_by_zeros<Kernel, Without>);
}

}  // namespace lamina::matmul_sparse24
