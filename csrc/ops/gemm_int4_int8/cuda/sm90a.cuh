// gemm_int4_int8 / sm90a:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: gemm_int4_int8.h
//
// Algorithm  gemm/cuda/int4_int8_sm90a.cuh, with products of activations and codes as unsigned bytes
// Layouts    a, its sums of groups: PackedActivations (gemm/cuda/int4_int8.h).  w: layout/int4.h.  scales, zero points [groups,n].
//            out [m,n]
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 16-byte loads -and, shift-> its register operand
//            -> s32 -gemm/cuda/group_end.cuh-> f32; then smem rows -> out (gemm/cuda/store_rows.cuh)
// Budget     regs <= 168; 0 spills; 0 bank conflicts
//            requires SASS: IGMMA, UTMALDG, LDGSTS
// Source     own; warp roles and ring as in gemm_int4's sm90a. Reference: tests/reference/gemm_int4.py
#pragma once

#include "gemm/cuda/int4_int8_sm90a.cuh"
#include "layout/matrix_descriptor.h"
#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::gemm_int4_int8 {

using Sm90aConfig = Int4Int8Sm90aConfig;

struct Sm90aWeights {
  static constexpr const char* kName = "gemm_int4_int8_sm90a";
  static constexpr Codes kCodes = Codes::kDense;
  static constexpr int kTileBytes = int4::kTileBytes;
  static constexpr int macs_per_cycle(int) { return 4096; }

  // Kernel: Int4Int8Sm90a<...>
  template <class Kernel>
  struct Products {
    using Pipe = typename Kernel::Pipe;
    using Tile = typename Kernel::Tile;
    using Groups = typename Kernel::Groups;
    using Sums = typename Kernel::Sums;

    // Products of a tile, 32 k each.
    static constexpr int kProducts = int4::kTileK / 32;
    uint32_t weights[kProducts][4];

    LAMINA_DEVICE Products(const auto&, const Tile&, int) {}

    // sums[64,kTokens] (+)= a[64,32] * tokens[32,kTokens]
    LAMINA_DEVICE static void start_product(Sums& sums, uint32_t (&a)[4], uint64_t tokens,
                                            bool accumulate) {
      dev::wgmma_fence_registers(a);
      dev::wgmma_fence();
      dev::wgmma_m64k32_u8s8<Kernel::kTokens>(sums, a, tokens, accumulate);
      dev::wgmma_commit();
    }

    // The product of 32 k from `tokens` on. Codes of 0 leave the first or the last 16 k out.
    LAMINA_DEVICE static void multiply(const auto& args, uint32_t first, uint32_t second,
                                       uint64_t tokens, Groups& group, uint32_t (&a)[4]) {
      Groups::unpack(first, second, a);
      if (args.p.a_zero_point.is_given()) group.add_codes(0, a);
      start_product(Kernel::flat(group.sums), a, tokens, !group.is_new);
      group.is_new = false;
    }

    // The products of 64 k from slice `slice` on. Within a group, each product is a wgmma group of its own with
    // registers of its own, and waits only for the product that used these registers one tile before. In a tile in
    // which a group ends, products are waited for one by one, and a product across the end becomes two, each with half
    // of the codes.
    LAMINA_DEVICE void multiply_tile(const auto& args, int warp, const std::byte* stage, int tile,
                                     int slice, Groups& group) {
      dev::U32x4 codes = Pipe::load_codes(stage, warp, tile);
      const uint64_t tokens = Pipe::tokens_of(stage, tile);
      int end = args.groups.end_of(group.index) - slice;
#pragma unroll 1
      for (int s = 0; s < kSlices;) {
        if (s == 0 && end >= kSlices) {
#pragma unroll
          for (int h = 0; h < kProducts; ++h) {
            dev::wgmma_wait<kProducts - 1>();
            multiply(args, codes.x[2 * h], codes.x[2 * h + 1], advance_descriptor(tokens, h * 32),
                     group, weights[h]);
          }
          s = kSlices;
        } else {
          uint32_t own[4];
          const bool is_second = s % 2 != 0, is_whole = !is_second && end >= s + 2;
          multiply(args, is_second ? 0 : codes.x[0],
                   is_second  ? codes.x[0]
                   : is_whole ? codes.x[1]
                              : 0,
                   advance_descriptor(tokens, s / 2 * 32), group, own);
          dev::wgmma_wait<0>();
          s += is_whole ? 2 : 1;
          codes = is_whole ? dev::U32x4{codes.x[2], codes.x[3], 0, 0}  // registers have no index
                           : dev::U32x4{codes.x[1], codes.x[2], codes.x[3], 0};
        }
        if (s != end) continue;
        Kernel::end_group(args, warp, stage, group);
        end = args.groups.end_of(group.index) - slice;
      }
    }

    LAMINA_DEVICE void multiply_stage(const auto& args, const Tile& tile, int s, int warp,
                                      const std::byte* stage, Groups& group, const auto& release,
                                      const auto& finish_tile) {
      const int first_step = static_cast<int>(tile.first_step);
#pragma unroll 1
      for (int t = 0; t < Pipe::kStageTiles && s + t < tile.steps; ++t) {
        multiply_tile(args, warp, stage, t, (first_step + s + t) * kSlices, group);
        if (t == 0) release();
        finish_tile(s + t + 1);
      }
    }
  };
};

template <Sm90aConfig kConfig>
CudaKernel sm90a_kernel(const char* name) {
  using Kernel = Int4Int8Sm90a<kConfig, Sm90aWeights>;
  return Kernel::record(name, &launch_as<Int4Int8Operands, &Kernel::start>);
}

}  // namespace lamina::gemm_int4_int8
