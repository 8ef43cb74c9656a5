// gemm_int8 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: ../epilogue.h
//
// Algorithm  a block owns block_m x block_n outputs and one split of k at a time; the warps of a block tile the
//            outputs and, for few rows, also k. Sums are exact integers: neither division shows.
// Layouts    a [m,k] row-major.  w: layout/int8_tile.h, the layout of the CPU kernels.  out [m,n] row-major.
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -mma m16n8k32-> s32 -> out
// Columns    lane q = lane / 4 reads 4 columns x 4 k at once: column 4 q + c is column q of the c-th of four
//            mmas. So a lane's sums are 8 neighbouring columns, stored as one or two 16-byte words.
// Budget     regs <= 160; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA, LDGSTS, LDSM
// Requires   nothing of a's alignment: 16-byte copies where its rows allow them, else 4-byte, else bytes
// Source     own; ring as in CUTLASS's multistage mainloop. Reference: tests/reference/gemm.py
#pragma once

#include <algorithm>
#include <climits>
#include <optional>

#include "base/int_math.h"
#include "block/row_copy.cuh"
#include "device/device.h"
#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/kernel.h"
#include "layout/int8_tile.h"
#include "layout/swizzle.h"
#include "ops/gemm_int8/cuda/run.h"
#include "ops/gemm_int8/cuda/scaler.cuh"
#include "ops/gemm_int8/cuda/sm80_groups.cuh"

namespace lamina::gemm_int8 {

struct Sm80Config {
  int block_m, block_n;           // outputs of a block
  int warps_m, warps_n, warps_k;  // how its warps divide rows, columns and the tiles of k of a step
  int step_tiles;                 // tiles of 64 k in a step of the ring
  int stages;
  int blocks_per_sm;
  bool is_grouped = false;  // scales along k: sm80_groups.cuh
};

template <Sm80Config kConfig>
struct Sm80 {
  static constexpr const char* kName = "gemm_int8_sm80";
  static constexpr int kWarps = kConfig.warps_m * kConfig.warps_n * kConfig.warps_k;
  static constexpr int kThreads = kWarps * dev::kWarpLanes;
  static constexpr int kMinBlocks = kConfig.blocks_per_sm;

  // The mma and what a warp computes with it: kMmaM x 32 columns, kRowTiles x kColumnGroups times.
  static constexpr int kMmaM = 16, kGroupN = 32, kMmasPerGroup = 4, kMmaK = 32;
  static constexpr int kLaneColumns = 8;  // of a group, neighbours
  static constexpr int kWarpM = kConfig.block_m / kConfig.warps_m;
  static constexpr int kWarpN = kConfig.block_n / kConfig.warps_n;
  static constexpr int kRowTiles = kWarpM / kMmaM;
  static constexpr int kColumnGroups = kWarpN / kGroupN;
  static_assert(kRowTiles * kMmaM * kConfig.warps_m == kConfig.block_m);
  static_assert(kColumnGroups * kGroupN * kConfig.warps_n == kConfig.block_n);
  static_assert(kConfig.step_tiles % kConfig.warps_k == 0 && kConfig.step_tiles >= 2);

  // A stage of the ring: the rows of a, then the tiles of w, [n / 16][k / 64].
  static constexpr int kStepK = kConfig.step_tiles * int8_tile::kTileK;
  static constexpr int kRowChunks = kStepK / swizzle::kChunkBytes;
  static constexpr int kTileChunks = int8_tile::kTileBytes / swizzle::kChunkBytes;
  static constexpr int kTileRowChunks = 4;
  static constexpr int kTilesN = kConfig.block_n / int8_tile::kTileN;
  static constexpr int kBytesA = kConfig.block_m * kStepK;
  static constexpr int kBytesW = kTilesN * kConfig.step_tiles * int8_tile::kTileBytes;
  using Scales = Sm80Scales<kConfig.block_m, kConfig.block_n>;
  static constexpr int kStageBytes =
      kBytesA + kBytesW + (kConfig.is_grouped ? static_cast<int>(sizeof(Scales)) : 0);
  static_assert(!kConfig.is_grouped || (kStepK == kScaleGroup && kConfig.warps_k == 1));
  // After the loop the ring holds the sums of warps that divide k.
  static constexpr int kSumsBytes = (kConfig.warps_k - 1) * kConfig.block_m * kConfig.block_n * 4;
  static constexpr int kRingBytes = kConfig.stages * kStageBytes;
  static constexpr int kTotalBytes = kConfig.is_grouped ? kConfig.block_m * kConfig.block_n * 4 : 0;
  static constexpr int kSmemBytes =
      (kRingBytes > kSumsBytes ? kRingBytes : kSumsBytes) + kTotalBytes;

  struct Args {
    Params p;
    Split split;
    int a_copy_bytes;  // 16, 4 or 1: what the alignment of a's rows allows
    int blocks_m, blocks_n;
    uint32_t units;  // of work of a block: block_m x block_n outputs, one split
  };

  using Sums = int32_t[kRowTiles][kColumnGroups][kMmasPerGroup][4];

  using Groups = Sm80Groups<Sm80, kConfig.is_grouped>;
  using Scaler = std::conditional_t<kConfig.is_grouped, Unscaled, IntegerScaler>;

  // Where a block, and a warp in it, is.
  struct Place {
    int64_t m0, n0;
    int split;
    int64_t first_step;
    int steps;
    int warp_m, warp_n, warp_k;
  };

  // Neighbouring units share weights.
  LAMINA_DEVICE static Place find_place(const Args& args, int unit) {
    const int column = unit / args.blocks_m, split = column / args.blocks_n;
    const int warp = dev::warp();
    const int64_t all = ceil_div(int8_tile::tiles_k(args.p.problem.k), kConfig.step_tiles);
    const int64_t first = static_cast<int64_t>(split) * args.split.steps;
    const int64_t left = all > first ? all - first : 0;
    return {static_cast<int64_t>(unit % args.blocks_m) * kConfig.block_m,
            static_cast<int64_t>(column % args.blocks_n) * kConfig.block_n,
            split,
            first,
            static_cast<int>(left < args.split.steps ? left : args.split.steps),
            warp % kConfig.warps_m,
            warp / kConfig.warps_m % kConfig.warps_n,
            warp / (kConfig.warps_m * kConfig.warps_n)};
  }

  // What a thread copies: its chunk of the rows of a and of the tiles of w, in passes that lie a fixed
  // number of rows, of tiles along k or of columns of tiles apart.
  struct Source {
    const int8_t* a;  // of the first pass; the next step is kStepK further
    const int8_t* w;
    int64_t a_pass, w_column;  // bytes between passes of a, between columns of tiles of w
    int rows, columns;         // of the block that are there, from this thread's first
    int a_to, w_to;            // in the stage
  };
  static constexpr int kRowsPerPass = kThreads / kRowChunks;
  static constexpr int kPassesA = kConfig.block_m / kRowsPerPass;
  static_assert(kThreads % kRowChunks == 0 && kPassesA * kRowsPerPass == kConfig.block_m &&
                kRowsPerPass % 8 == 0);
  static constexpr int kTilesPerPass = kThreads / kTileChunks;
  static constexpr int kPassesW = kTilesN * kConfig.step_tiles / kTilesPerPass;
  static constexpr int kPassTilesK =
      kTilesPerPass < kConfig.step_tiles ? kTilesPerPass : kConfig.step_tiles;
  static constexpr int kPassColumns = kTilesPerPass / kPassTilesK;
  static constexpr int kPassesK = kConfig.step_tiles / kPassTilesK;  // to a column of tiles

  LAMINA_DEVICE static Source find_source(const Args& args, const Place& at) {
    const Params& p = args.p;
    const int thread = dev::thread_index();
    const int row = thread / kRowChunks, chunk = thread % kRowChunks;
    const int tile = thread / kTileChunks, in_tile = thread % kTileChunks;
    const int tile_row = in_tile / kTileRowChunks, tile_chunk = in_tile % kTileRowChunks;
    const int64_t tiles_k = int8_tile::tiles_k(p.problem.k);
    const int64_t column = at.n0 / int8_tile::kTileN + tile / kPassTilesK;
    const int64_t rows = p.problem.m - at.m0 - row;
    const int64_t columns = int8_tile::tiles_n(p.problem.n) - column;
    return {p.a + (at.m0 + row) * p.a_stride + at.first_step * kStepK + chunk * 16,
            p.w +
                (column * tiles_k + at.first_step * kConfig.step_tiles + tile % kPassTilesK) *
                    int8_tile::kTileBytes +
                in_tile * 16,
            p.a_stride * kRowsPerPass,
            tiles_k * int8_tile::kTileBytes,
            static_cast<int>(rows < kConfig.block_m ? rows : kConfig.block_m),
            static_cast<int>(columns < kTilesN ? columns : kTilesN),
            (row * kRowChunks + swizzle::row_chunk(row, chunk)) * 16,
            kBytesA +
                ((tile / kPassTilesK) * kConfig.step_tiles + tile % kPassTilesK) *
                    int8_tile::kTileBytes +
                (tile_row * kTileRowChunks + swizzle::tile_chunk(tile_row, tile_chunk)) * 16};
  }

  // Starts the copies of one step into a stage; `from` moves on to the next step.
  LAMINA_DEVICE static void load_step(const Args& args, const Place& at, Source& from, int64_t step,
                                      std::byte* stage) {
    const Params& p = args.p;
    const int64_t left_k = p.problem.k - step * kStepK - dev::thread_index() % kRowChunks * 16;
    const int valid = left_k < 0 ? 0 : left_k > 16 ? 16 : static_cast<int>(left_k);
    const auto to = [&](int pass) {
      return stage + from.a_to + pass * kRowsPerPass * kRowChunks * swizzle::kChunkBytes;
    };
    const auto bytes = [&](int pass) { return pass * kRowsPerPass < from.rows ? valid : 0; };
    if (args.a_copy_bytes == 16) {
#pragma unroll
      for (int pass = 0; pass < kPassesA; ++pass)
        dev::cp_async<16>(to(pass), bytes(pass) > 0 ? from.a + pass * from.a_pass : p.a,
                          bytes(pass));
    } else {
#pragma unroll 1  // the slow paths; unrolled, their registers are the kernel's
      for (int pass = 0; pass < kPassesA; ++pass)
        copy_unaligned(args.a_copy_bytes, to(pass),
                       reinterpret_cast<const std::byte*>(from.a + pass * from.a_pass),
                       reinterpret_cast<const std::byte*>(p.a), bytes(pass));
    }
    const int64_t left_tiles = int8_tile::tiles_k(p.problem.k) - step * kConfig.step_tiles -
                               dev::thread_index() / kTileChunks % kPassTilesK;
#pragma unroll
    for (int pass = 0; pass < kPassesW; ++pass) {
      const int column = pass / kPassesK * kPassColumns, tile_k = pass % kPassesK * kPassTilesK;
      const bool is_there = column < from.columns && tile_k < left_tiles;
      dev::cp_async<16>(
          stage + from.w_to + (column * kConfig.step_tiles + tile_k) * int8_tile::kTileBytes,
          is_there ? from.w + column * from.w_column + tile_k * int8_tile::kTileBytes : p.w,
          is_there ? 16 : 0);
    }
    if constexpr (kConfig.is_grouped)
      Scales::load(p, step, at.m0, at.n0, kThreads, scales_of(stage));
    from.a += kStepK;
    from.w += kConfig.step_tiles * int8_tile::kTileBytes;
  }

  LAMINA_DEVICE static Scales& scales_of(std::byte* stage) {
    return *reinterpret_cast<Scales*>(stage + kBytesA + kBytesW);
  }

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
          dev::ldmatrix(a[r], stage + (row * kRowChunks + swizzle::row_chunk(row, chunk)) * 16);
        }
#pragma unroll
        for (int c = 0; c < kColumnGroups; ++c) {
          const int tile = (at.warp_n * kWarpN + c * kGroupN) / int8_tile::kTileN + q / 4;
          const std::byte* const w =
              stage + kBytesA + (tile * kConfig.step_tiles + tile_k) * int8_tile::kTileBytes;
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

  // Adds the sums of the warps that divide k; afterwards those of warp_k == 0 are whole.
  LAMINA_DEVICE static void add_warps(const Place& at, std::byte* smem, Sums& sums) {
    if constexpr (kConfig.warps_k > 1) {
      constexpr int kWords = kRowTiles * kColumnGroups * kMmasPerGroup;  // of 16 bytes, of a lane
      const int peer = at.warp_m + kConfig.warps_m * at.warp_n;
      dev::U32x4* const words = reinterpret_cast<dev::U32x4*>(smem);
      const auto word = [&](int other, int i) {
        const int pair = (other - 1) * kConfig.warps_m * kConfig.warps_n + peer;
        return words + (pair * kWords + i) * dev::kWarpLanes + dev::lane();
      };
      int32_t (*const flat)[4] = &sums[0][0][0];
      dev::block_sync();  // everybody is done with the ring
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

  // Into the partial of a split, or to the epilogue and out.
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

  LAMINA_DEVICE static void run(const Args& args) {
    const uint32_t stride = static_cast<uint32_t>(dev::grid_size().x);
    for (uint32_t unit = dev::block_index().x; unit < args.units; unit += stride) {
      compute(args, find_place(args, static_cast<int>(unit)));
      if (args.units - unit > stride) dev::block_sync();  // the ring is read
    }
  }

  LAMINA_DEVICE static void compute(const Args& args, const Place& at) {
    std::byte* const smem = dev::dynamic_smem();
    const auto stage = [&](int step) { return smem + step % kConfig.stages * kStageBytes; };
    Source from = find_source(args, at);
    Sums sums = {};
    [[maybe_unused]] Groups groups(args.p, at);
#pragma unroll
    for (int s = 0; s < kConfig.stages - 1; ++s) {
      if (s < at.steps) load_step(args, at, from, at.first_step + s, stage(s));
      dev::cp_async_commit();
    }
    for (int s = 0; s < at.steps; ++s) {
      dev::cp_async_wait<kConfig.stages - 2>();
      dev::block_sync();  // step s has arrived for all; the stage of step s - 1 is free
      const int next = s + kConfig.stages - 1;
      if (next < at.steps) load_step(args, at, from, at.first_step + next, stage(next));
      dev::cp_async_commit();
      multiply_step(at, stage(s), sums);
      if constexpr (kConfig.is_grouped) groups.add_step(args, at, s, scales_of(stage(s)), sums);
    }
    if constexpr (kConfig.is_grouped) {
      if (args.split.count == 1) store<false>(args, at, 0, groups.k_chunk);
    } else {
      add_warps(at, smem, sums);
      if (at.warp_k > 0) return;
      if (args.split.count == 1) {
        store<false>(args, at, 0, sums);
      } else {
        store<true>(args, at, at.split, sums);
      }
    }
  }

  static Status launch(const Params& params, const Split& split, int max_blocks, void* stream) {
    const Problem& problem = params.problem;
    const int64_t blocks_m = ceil_div(problem.m, kConfig.block_m);
    const int64_t blocks_n = ceil_div(problem.n, kConfig.block_n);
    const std::optional<int64_t> units = checked_product(blocks_m, blocks_n, split.count);
    if (!units || *units > INT_MAX)
      return Status::error("gemm_int8: m = ", problem.m, ", n = ", problem.n, ": more than ",
                           INT_MAX, " tiles of ", kConfig.block_m, " x ", kConfig.block_n);
    const dev::LaunchShape shape{{static_cast<int>(std::min<int64_t>(*units, max_blocks)), 1, 1},
                                 kSmemBytes};
    return dev::launch<Sm80>(
        shape, stream,
        {params, split, copy_bytes_of(a_alignment(params)), static_cast<int>(blocks_m),
         static_cast<int>(blocks_n), static_cast<uint32_t>(*units)});
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
