// gemm_int4 / sm90a:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  gemm/cuda/half_sm90a.cuh, with codes that become weights in wgmma's register operand, 16 k at a time
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/int4.h.  scales, zero points [groups,n].  out [m,n] row-major
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 16-byte loads -> gemm/cuda/int4_dequantize.cuh -> its
//            register operand -> f32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: HGMMA, UTMALDG, LDGSTS
// Source     own; weights as wgmma's register operand as in Machete, warp roles and ring as in gemm_int8's sm90a.
//            Reference: tests/reference/gemm_int4.py
#pragma once

#include <algorithm>
#include <type_traits>

#include "gemm/cuda/half_sm90a.cuh"
#include "layout/matrix_descriptor.h"
#include "ops/gemm_int4/cuda/products.cuh"

namespace lamina::gemm_int4 {

using Sm90aConfig = HalfSm90aConfig;

template <class T>
struct Sm90aWeights : Int4Weights<T> {
  static constexpr const char* kName = "gemm_int4_sm90a";
  static constexpr int macs_per_cycle(int) { return 2048; }

  // Kernel: HalfSm90a<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Group = typename Kernel::Group;
    using Sums = typename Kernel::Sums;
    using Registers = uint32_t[kSlices][4];
    static constexpr int kReleaseTile = 0;
    static constexpr bool kStopsAtK = true;  // keeps a sum of -0

    Registers registers;

    LAMINA_DEVICE Products(const auto&, const typename Kernel::Tile&, int) {}

    LAMINA_DEVICE static dev::U32x4 load(const std::byte* stage, int warp, int tile, bool) {
      return Pipe::load_codes(stage, warp, tile);
    }

    // sums[64,kTokens] += weights[64,16] * tokens[16,kTokens], for slice s of a tile.
    LAMINA_DEVICE static void start_product(Sums& sums, const uint32_t (&weights)[4],
                                            uint64_t tokens, int s) {
      const uint64_t b = advance_descriptor(tokens, s * kSliceK * 2);
      if constexpr (std::is_same_v<T, F16>) {
        dev::wgmma_m64k16_f16<Kernel::kTokens>(sums, weights, b, true);
      } else {
        dev::wgmma_m64k16_bf16<Kernel::kTokens>(sums, weights, b, true);
      }
    }

    // Two products make one wgmma group. The four products of a tile have registers of their own, so two products wait
    // only for the two that used their registers one tile before, while the two between are in flight.
    LAMINA_DEVICE void multiply_tile(const dev::U32x4& codes, uint64_t tokens, int,
                                     const Group& group, Sums& sums) {
#pragma unroll
      for (int two = 0; two < kSlices; two += 2) {
        dev::wgmma_wait<kSlices / 2 - 1>();
#pragma unroll
        for (int s = two; s < two + 2; ++s) {
          group.of[0].weights(codes.x[s], registers[s]);
          dev::wgmma_fence_registers(registers[s]);
        }
        dev::wgmma_fence();
#pragma unroll
        for (int s = two; s < two + 2; ++s) start_product(sums, registers[s], tokens, s);
        dev::wgmma_commit();
      }
    }

    // The tile starts at slice `slice`. While products are in flight no register may depend on a branch, so all weights
    // come first, and all products are waited for at the end.
    LAMINA_DEVICE static void multiply_edge(const auto& args, const dev::U32x4& codes,
                                            uint64_t tokens, int slice, const auto& enter,
                                            Group& group, Sums& sums) {
      const int64_t left = args.p.problem.k - static_cast<int64_t>(slice) * kSliceK;
      Registers own;
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
        if (group.end <= slice + s) enter();
        group.of[0].weights(codes.x[s], own[s]);
        mask_weights(own[s], static_cast<int>(std::min<int64_t>(left - s * kSliceK, kSliceK)));
        dev::wgmma_fence_registers(own[s]);
      }
      dev::wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSlices; ++s) start_product(sums, own[s], tokens, s);
      dev::wgmma_commit();
      dev::wgmma_wait<0>();
    }
  };
};

template <Sm90aConfig kConfig>
CudaKernel sm90a_kernel(const char* name) {
  return half_sm90a_kernel<kConfig, Sm90aWeights>(name);
}

}  // namespace lamina::gemm_int4
