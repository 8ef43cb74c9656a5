// gemm_int8 / sm90a with scales along k: a ring step is a group; its sums are scaled and added to the k chunk.
//
// Algorithm  a warp beside the producer warp loads the scales: from global memory into registers one step ahead, and
//            into shared memory when the stage is free. The products of a step start from 0, and the consumer waits
//            for them; while one warpgroup scales its sums, the other multiplies. The end of a k chunk:
//            gemm/cuda/k_chunk.cuh
// Data path  scales -> regs -> smem, behind the ring -> regs; sums s32 -> f32
#pragma once

#include "device/device.h"
#include "gemm/cuda/k_chunk.cuh"
#include "gemm/epilogue_maths.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

// The scales of one group in shared memory, 0 past the edges of m and n.
template <int kFeatures, int kTokens>
struct Sm90aScales {
  float w_scale[kFeatures];
  int32_t w_sum[kFeatures];
  float a_scale[kTokens];
  int32_t zero_point[kTokens];
};

// Kernel: Sm90a<...>
template <class Kernel>
struct Sm90aGroups {
  static constexpr int kTokens = Kernel::kTokens, kFeatures = Kernel::kFeatures;
  using Scales = typename Kernel::Scales;
  using Sums = typename Kernel::Sums;
  using KChunk = float[kTokens / 2];  // in the order of the sums

  // The scales of one group that one lane loads.
  struct Share {
    static constexpr int kW = (kFeatures + dev::kWarpLanes - 1) / dev::kWarpLanes;
    static constexpr int kA = (kTokens + dev::kWarpLanes - 1) / dev::kWarpLanes;
    float w_scale[kW], a_scale[kA];
    int32_t w_sum[kW], zero_point[kA];
  };

  template <class Args, class Tile>
  LAMINA_DEVICE static Share load(const Args& args, const Tile& tile, int64_t group) {
    const Params& p = args.p;
    const Broadcast<float> w_scale = p.w_scale_of(group), a_scale = p.a_scale_of(group);
    const bool has_zero = p.a_zero_point.is_given();
    Share share = {};
#pragma unroll
    for (int t = 0; t < Share::kW; ++t) {
      const int64_t j = tile.n0 + t * dev::kWarpLanes + dev::lane();
      if (j >= p.problem.n) continue;
      share.w_scale[t] = dev::load_global(w_scale.data + j * w_scale.stride);
      if (has_zero) share.w_sum[t] = dev::load_global(p.w_sums + group * p.problem.n + j);
    }
#pragma unroll
    for (int t = 0; t < Share::kA; ++t) {
      const int64_t i = tile.m0 + t * dev::kWarpLanes + dev::lane();
      if (i >= p.problem.m) continue;
      share.a_scale[t] = dev::load_global(a_scale.data + i * a_scale.stride);
      if (has_zero)
        share.zero_point[t] = dev::load_global(p.a_zero_point.data + i * p.a_zero_point.stride);
    }
    return share;
  }

  LAMINA_DEVICE static void put(const Share& share, bool has_zero, Scales& to) {
#pragma unroll
    for (int t = 0; t < Share::kW; ++t) {
      const int j = t * dev::kWarpLanes + dev::lane();
      dev::store_shared(&to.w_scale[j], share.w_scale[t]);
      if (has_zero) dev::store_shared(&to.w_sum[j], share.w_sum[t]);
    }
#pragma unroll
    for (int t = 0; t < Share::kA; ++t) {
      const int i = t * dev::kWarpLanes + dev::lane();
      if (i >= kTokens) continue;
      dev::store_shared(&to.a_scale[i], share.a_scale[t]);
      if (has_zero) dev::store_shared(&to.zero_point[i], share.zero_point[t]);
    }
  }
  static_assert(kFeatures % dev::kWarpLanes == 0);

  // The warp that loads the scales, a second producer beside the one of the operands.
  template <class Args, class Schedule>
  LAMINA_DEVICE static void produce(const Args& args, const Schedule& schedule) {
    typename Kernel::Cursor cursor;
    const bool has_zero = args.p.a_zero_point.is_given();
    for (int64_t unit = Schedule::first(); unit < schedule.units; unit += Schedule::stride()) {
      const auto tile = schedule.tile(unit);
      if (tile.steps == 0) continue;
      Share next = load(args, tile, tile.first_step);
      for (int s = 0; s < tile.steps; ++s, cursor.advance()) {
        const Share share = next;
        if (s + 1 < tile.steps) next = load(args, tile, tile.first_step + s + 1);
        dev::mbarrier_wait(&Kernel::barriers().empty[cursor.stage], cursor.parity ^ 1);
        put(share, has_zero, Kernel::scales_at(cursor.stage));
        dev::warp_sync();  // one lane arrives for the stores of all lanes
        if (dev::lane() == 0) dev::mbarrier_arrive(&Kernel::barriers().full[cursor.stage]);
      }
    }
  }

  // Multiplies, scales and stores a tile. Where k is not split, k_chunk holds the total over k after the last step.
  template <bool kStoresByTma, class Args, class Tile, class Cursor>
  LAMINA_DEVICE static void consume(const Args& args, const Tile& tile, int warp, Cursor& cursor,
                                    Sums& sums, int& box) {
    uint32_t weights[Kernel::kProducts][4];
    KChunk k_chunk;
    const KChunkEnd<kTokens / 8, Kernel::kConsumerThreads> end{
        k_chunk, Kernel::total() + dev::thread_index(), kChunkGroups};
    end.clear(empty_sum(args.p.problem.groups()));
    for (int s = 0; s < tile.steps; ++s, cursor.advance()) {
      const std::byte* const stage = Kernel::stage_at(cursor.stage);
      const uint32_t tokens = dev::smem_address(stage + Kernel::kBytesW);
      dev::mbarrier_wait(&Kernel::barriers().full[cursor.stage], cursor.parity);
      dev::wgmma_fence_registers(sums);
#pragma unroll
      for (int h = 0; h < Kernel::kProducts; ++h) {
        Kernel::load_weights(stage, warp, h, weights[h]);
        dev::wgmma_fence();
        dev::wgmma_m64k32_s8<kTokens>(
            sums, weights[h],
            dev::matrix_descriptor(tokens + static_cast<uint32_t>(h * Kernel::kWgmmaK), 0,
                                   Kernel::kSwizzleGroupBytes, Swizzle::k128),
            h > 0);
        dev::wgmma_commit();
      }
      dev::wgmma_wait<0>();
      dev::wgmma_fence_registers(sums);
      add_step(Kernel::scales_at(cursor.stage), args.p.a_zero_point.is_given(), warp, sums,
               k_chunk);
      Kernel::release(cursor.stage);
      end(args.split, static_cast<int>(tile.first_step) + s + 1, s + 1 == tile.steps,
          [&](int64_t partial) {
            Kernel::template store<true>(args, tile, warp, partial, k_chunk);
          });
    }
    if constexpr (kStoresByTma) {
      Kernel::send(args, tile, warp, k_chunk, box);
    } else if (args.split.count == 1) {
      Kernel::template store<false>(args, tile, warp, 0, k_chunk);
    }
  }

  // Adds the scaled sums of a step to the k chunk.
  LAMINA_DEVICE static void add_step(const Scales& scales, bool has_zero, int warp, Sums& sums,
                                     KChunk& k_chunk) {
    const int g = dev::lane() % 4;
    const int feature = warp * int8_tile::kTileN + 2 * Kernel::lane_pair(dev::lane() / 4);
    if (has_zero) {
      const dev::U32x2 w_sum = two(&scales.w_sum[feature]);
#pragma unroll
      for (int at = 0; at < kTokens / 8; ++at) {
        const dev::U32x2 zero_point = two(&scales.zero_point[at * 8 + 2 * g]);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[at * 4 + i] = correct(sums[at * 4 + i], static_cast<int32_t>(zero_point.x[i % 2]),
                                     static_cast<int32_t>(w_sum.x[i / 2]));
      }
    }
    const dev::U32x2 w_scale = two(&scales.w_scale[feature]);
#pragma unroll
    for (int at = 0; at < kTokens / 8; ++at) {
      const dev::U32x2 a_scale = two(&scales.a_scale[at * 8 + 2 * g]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        k_chunk[at * 4 + i] =
            add_group(sums[at * 4 + i], std::bit_cast<float>(a_scale.x[i % 2]),
                      std::bit_cast<float>(w_scale.x[i / 2]), k_chunk[at * 4 + i]);
    }
  }

  template <class T>
  LAMINA_DEVICE static dev::U32x2 two(const T* from) {
    return dev::load_shared(reinterpret_cast<const dev::U32x2*>(from));
  }
};

}  // namespace lamina::gemm_int8
