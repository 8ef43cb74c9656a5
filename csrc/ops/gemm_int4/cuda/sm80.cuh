// gemm_int4 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  gemm/cuda/half_sm80.cuh, with codes that become weights in registers, 16 k at a time
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/int4.h.  scales, zero points [groups,n].  out [m,n] row-major
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -gemm/cuda/int4_dequantize.cuh->
//            mma m16n8k16 -> f32 -> out
// Budget     regs <= 232; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: HMMA, LDGSTS, LDSM
// Source     own. Reference: tests/reference/gemm_int4.py
#pragma once

#include "gemm/cuda/half_sm80.cuh"
#include "ops/gemm_int4/cuda/products.cuh"

namespace lamina::gemm_int4 {

using Sm80Config = HalfSm80Config;

template <class T>
struct Sm80Weights : Int4Weights<T> {
  static constexpr const char* kName = "gemm_int4_sm80";
  static constexpr int kMacsPerCycle = 1024;

  // Kernel: HalfSm80<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Place = typename Kernel::Place;
    using Group = typename Kernel::Group;
    using Sums = typename Kernel::Sums;
    static constexpr int kTiles = Pipe::kTiles, kTokenGroups = Pipe::kTokenGroups;

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

    LAMINA_DEVICE static void multiply_step(const auto& args, const Place& at, int step,
                                            const std::byte* stage, Group& group, Sums& sums) {
      const int begin = step * Kernel::kStepSlices;
      group.begin_stage(begin);
      const auto enter_group = [&] {
        group.enter(args.groups, stage + Pipe::kGroupsAt,
                    at.warp_n * kTiles * int4::kTileN + dev::lane() / 4 * 2);
      };
#pragma unroll 1
      for (int t = 0; t < Kernel::kStepTiles; ++t) {
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
  };
};

template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  return half_sm80_kernel<kConfig, Sm80Weights>(name);
}

}  // namespace lamina::gemm_int4
