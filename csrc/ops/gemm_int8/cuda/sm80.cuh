// gemm_int8 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  a block owns block_m x block_n outputs and one split of k at a time; the warps of a block tile the
//            outputs and, for few rows, also k. Sums are exact integers, so the result depends on neither division.
// Layouts    a [m,k] row-major.  w: layout/int8_tile.h, the layout of the CPU kernels.  out [m,n] row-major.
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -mma m16n8k32-> s32 -> out
// Columns    lane q = lane / 4 reads 4 columns x 4 k at once: column 4 q + c is column q of the c-th of four
//            mmas. So a lane's sums are 8 neighbouring columns, stored as one or two 16-byte words.
// Budget     regs <= 160; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA, LDGSTS, LDSM
// Requires   no alignment: rows of a that do not allow 16-byte copies are copied in 4-byte words or in bytes
// Source     own; the ring is gemm/cuda/sm80_pipe.cuh. Reference: tests/reference/gemm.py
#pragma once

#include <algorithm>

#include "device/device.h"
#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/integer_scaler.cuh"
#include "gemm/cuda/kernel.h"
#include "gemm/cuda/sm80_pipe.cuh"
#include "layout/int8_tile.h"
#include "layout/swizzle.h"
#include "ops/gemm_int8/cuda/run.h"
#include "ops/gemm_int8/cuda/sm80_groups.cuh"

namespace lamina::gemm_int8 {

struct Sm80Config {
  int block_m, block_n, warps_m, warps_n, warps_k, step_tiles, stages;  // Sm80Shape
  int blocks_per_sm;
  bool is_grouped = false;  // scales along k: sm80_groups.cuh
};

template <Sm80Config kConfig>
struct Sm80 {
  using Scales = Sm80Scales<kConfig.block_m, kConfig.block_n>;
  using Pipe = Sm80Pipe<Sm80Shape{.block_m = kConfig.block_m,
                                  .block_n = kConfig.block_n,
                                  .warps_m = kConfig.warps_m,
                                  .warps_n = kConfig.warps_n,
                                  .warps_k = kConfig.warps_k,
                                  .step_tiles = kConfig.step_tiles,
                                  .stages = kConfig.stages,
                                  .a_bytes = 1,
                                  .tile_bytes = int8_tile::kTileBytes,
                                  .group_bytes = kConfig.is_grouped ? int{sizeof(Scales)} : 0}>;
  using Place = typename Pipe::Place;
  static constexpr int kStepK = Pipe::kStepK;
  static_assert(!kConfig.is_grouped || (kStepK == kScaleGroup && kConfig.warps_k == 1));

  static constexpr const char* kName = "gemm_int8_sm80";
  static constexpr int kThreads = Pipe::kThreads, kMinBlocks = kConfig.blocks_per_sm;

  // The mma and what a warp computes with it: kMmaM x 32 columns, kRowTiles x kColumnGroups times.
  static constexpr int kMmaM = 16, kGroupN = 32, kMmasPerGroup = 4, kMmaK = 32;
  static constexpr int kLaneColumns = 8;    // neighbouring columns of a lane in a group
  static constexpr int kTileRowChunks = 4;  // chunks in a row of an int8_tile
  static constexpr int kWarpM = kConfig.block_m / kConfig.warps_m;
  static constexpr int kWarpN = kConfig.block_n / kConfig.warps_n;
  static constexpr int kRowTiles = kWarpM / kMmaM;
  static constexpr int kColumnGroups = kWarpN / kGroupN;
  static_assert(kRowTiles * kMmaM * kConfig.warps_m == kConfig.block_m);
  static_assert(kColumnGroups * kGroupN * kConfig.warps_n == kConfig.block_n);
  static_assert(kConfig.step_tiles % kConfig.warps_k == 0 && kConfig.step_tiles >= 2);

  // After the loop the ring holds the sums of the warps that divide k.
  static constexpr int kSumsBytes = (kConfig.warps_k - 1) * kConfig.block_m * kConfig.block_n * 4;
  static constexpr int kTotalBytes = kConfig.is_grouped ? kConfig.block_m * kConfig.block_n * 4 : 0;
  static constexpr int kSmemBytes = std::max(Pipe::kRingBytes, kSumsBytes) + kTotalBytes;

  struct Args {
    Params p;
    Split split;
    int a_copy_bytes;  // bytes of one copy of a: 16, 4 or 1
    Sm80Units units;

    constexpr int64_t row_bytes() const { return p.a_stride; }
  };

  using Sums = int32_t[kRowTiles][kColumnGroups][kMmasPerGroup][4];

  using Groups = Sm80Groups<Sm80, kConfig.is_grouped>;
  using Scaler = std::conditional_t<kConfig.is_grouped, Unscaled, IntegerScaler>;

  struct Copies : Pipe::Copies {
    LAMINA_DEVICE static Copies at(const Args& args, const Place& at) {
      return {Pipe::Copies::at(args, at)};
    }
    LAMINA_DEVICE void start(const Args& args, const Place& at, int step, std::byte* stage) {
      this->start_any_rows(args, step, stage);
      this->start_tiles(args, step, stage);
      if constexpr (kConfig.is_grouped)
        Scales::load(args.p, step, at.m0, at.n0, kThreads,
                     *reinterpret_cast<Scales*>(stage + Pipe::kGroupsAt));
      this->advance();
    }
  };

  LAMINA_DEVICE static void multiply_step(const Place& at, const std::byte* stage, Sums& sums) {
    const int lane = dev::lane(), g = lane % 4, q = lane / 4;
#pragma unroll
    for (int t = 0; t < kConfig.step_tiles / kConfig.warps_k; ++t) {
      const int tile_k = t * kConfig.warps_k + at.warp_k;
#pragma unroll
      for (int half = 0; half < int8_tile::kTileK / kMmaK; ++half) {
        uint32_t a[kRowTiles][4];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          const int row = at.warp_m * kWarpM + r * kMmaM + lane % 16;
          const int chunk = tile_k * kTileRowChunks + half * 2 + lane / 16;
          dev::ldmatrix(a[r], stage + Pipe::chunk_at(row, chunk));
        }
#pragma unroll
        for (int c = 0; c < kColumnGroups; ++c) {
          const int tile = (at.warp_n * kWarpN + c * kGroupN) / int8_tile::kTileN + q / 4;
          const std::byte* const w =
              stage + Pipe::kBytesA + (tile * kConfig.step_tiles + tile_k) * int8_tile::kTileBytes;
          dev::U32x4 b[2];
#pragma unroll
          for (int v = 0; v < 2; ++v) {
            const int row = half * 8 + v * 4 + g;
            b[v] = dev::load_shared(reinterpret_cast<const dev::U32x4*>(
                w + (row * kTileRowChunks + swizzle::tile_chunk(row, q % 4)) * 16));
          }
#pragma unroll
          for (int j = 0; j < kMmasPerGroup; ++j) {
            const uint32_t column[2] = {b[0].x[j], b[1].x[j]};
#pragma unroll
            for (int r = 0; r < kRowTiles; ++r) dev::mma_m16n8k32_s8(sums[r][c][j], a[r], column);
          }
        }
      }
    }
  }

  // Adds up the sums of the warps that divide k; the warps with warp_k == 0 get the totals.
  LAMINA_DEVICE static void add_warps(const Place& at, std::byte* smem, Sums& sums) {
    if constexpr (kConfig.warps_k > 1) {
      constexpr int kWords = kRowTiles * kColumnGroups * kMmasPerGroup;  // 16-byte words of a lane
      const int peer = at.warp_m + kConfig.warps_m * at.warp_n;
      dev::U32x4* const words = reinterpret_cast<dev::U32x4*>(smem);
      const auto word = [&](int other, int i) {
        const int pair = (other - 1) * kConfig.warps_m * kConfig.warps_n + peer;
        return words + (pair * kWords + i) * dev::kWarpLanes + dev::lane();
      };
      int32_t (*const flat)[4] = &sums[0][0][0];
      dev::block_sync();  // all warps have read the ring
      if (at.warp_k > 0)
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          dev::U32x4 value;
          for (int e = 0; e < 4; ++e) value.x[e] = static_cast<uint32_t>(flat[i][e]);
          dev::store_shared(word(at.warp_k, i), value);
        }
      dev::block_sync();
      if (at.warp_k == 0)
        for (int other = 1; other < kConfig.warps_k; ++other)
#pragma unroll
          for (int i = 0; i < kWords; ++i) {
            const dev::U32x4 value = dev::load_shared(word(other, i));
            for (int e = 0; e < 4; ++e) flat[i][e] += static_cast<int32_t>(value.x[e]);
          }
    }
  }

  // Stores the sums to the partial sum of a split (kToPartial), or through the epilogue to out.
  template <bool kToPartial, class Acc>
  LAMINA_DEVICE static void store(const Args& args, const Place& at, int64_t partial,
                                  const Acc (&sums)[kRowTiles][kColumnGroups][kMmasPerGroup][4]) {
    const Params& p = args.p;
    const int lane = dev::lane();
#pragma unroll
    for (int c = 0; c < kColumnGroups; ++c) {
      const int64_t j = at.n0 + at.warp_n * kWarpN + c * kGroupN + lane % 4 * kLaneColumns;
      if (j >= p.problem.n) continue;
      const Columns<Scaler, kLaneColumns> columns(p, j);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t i = at.m0 + at.warp_m * kWarpM + r * kMmaM + half * 8 + lane / 4;
          if (i >= p.problem.m) continue;
          Run<Acc, kLaneColumns> octet;
#pragma unroll
          for (int e = 0; e < kLaneColumns; ++e)
            octet.value[e] = sums[r][c][e % kMmasPerGroup][half * 2 + e / kMmasPerGroup];
          if constexpr (kToPartial) {
            store_run(partial_at<Acc>(args.split, p.problem, partial, i, j), octet, kLaneColumns);
          } else {
            store_row(p, octet.value, i, columns);
          }
        }
    }
  }

  LAMINA_DEVICE static void compute(const Args& args, const Place& at) {
    Sums sums = {};
    [[maybe_unused]] Groups groups(args.p, at);
    Pipe::template for_steps<Copies>(args, at, [&](int step, const std::byte* stage) {
      multiply_step(at, stage, sums);
      if constexpr (kConfig.is_grouped)
        groups.add_step(args, at, step, *reinterpret_cast<const Scales*>(stage + Pipe::kGroupsAt),
                        sums);
    });
    if constexpr (kConfig.is_grouped) {
      if (args.split.count == 1) store<false>(args, at, 0, groups.k_chunk);
    } else {
      add_warps(at, dev::dynamic_smem(), sums);
      if (at.warp_k > 0) return;
      if (args.split.count == 1) {
        store<false>(args, at, 0, sums);
      } else {
        store<true>(args, at, at.split, sums);
      }
    }
  }

  LAMINA_DEVICE static void run(const Args& args) { Pipe::template run<Sm80>(args); }

  static Status launch(const Params& params, const Split& split, int max_blocks, void* stream) {
    return Pipe::template launch<Sm80>(
        "gemm_int8", {params, split, copy_bytes_of(a_alignment(params)), {}}, max_blocks, stream);
  }
};

template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  using Kernel = Sm80<kConfig>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = Kernel::kStepK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = 2048,
          .step_cycles = kConfig.is_grouped ? 200 : 100,
          .launch = &launch_as<Params, &Kernel::launch>};
}

}  // namespace lamina::gemm_int8
