// gemm_int4_int8 / sm80:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  gemm/cuda/int4_int8_sm80.cuh, with products of activations and codes as unsigned bytes
// Layouts    a, its sums of groups: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/int4.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -and, shift-> mma m16n8k32 u8 s8 -> s32
//            -gemm/cuda/group_end.cuh-> f32 -> out
// Budget     regs <= 255; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA, LDGSTS, LDSM
// Source     own; codes as bytes are as in QServe, Lin et al., arXiv:2405.04532.
//            Reference: tests/reference/gemm_int4.py
#pragma once

#include "gemm/cuda/int4_int8_sm80.cuh"
#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::gemm_int4_int8 {

using Sm80Config = Int4Int8Sm80Config;

struct Sm80Weights {
  static constexpr const char *kOp = "gemm_int4_int8", *kName = "gemm_int4_int8_sm80";
  static constexpr Codes kCodes = Codes::kDense;
  static constexpr int kTileBytes = int4::kTileBytes, kMacsPerCycle = 2048;

  // Kernel: Int4Int8Sm80<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Place = typename Kernel::Place;
    using Groups = typename Kernel::Groups;
    static constexpr int kTiles = Kernel::kTiles, kTokenGroups = Kernel::kTokenGroups;

    // The products of one slice, or of two slices, whose codes are words `word` and `word + 1` of each tile.
    LAMINA_DEVICE static void multiply_slices(const auto& args, const Place& at,
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

    LAMINA_DEVICE static void multiply_step(const auto& args, const Place& at, int step,
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
          group.end(args, at, stage + Pipe::kGroupsAt, Kernel::tokens_zero());
          end = args.groups.end_of(group.index) - step * kSlices;
        }
      }
    }
  };
};

template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  using Kernel = Int4Int8Sm80<kConfig, Sm80Weights>;
  return Kernel::record(name, &launch_as<Int4Int8Operands, &Kernel::start>);
}

}  // namespace lamina::gemm_int4_int8
