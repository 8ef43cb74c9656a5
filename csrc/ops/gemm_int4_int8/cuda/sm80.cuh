// gemm_int4_int8 / sm80:   out[i,j] = epilogue(scale_i * sum_g scale_gj * x_ijg), x: ../gemm_int4_int8.h
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks of k. Weights are the 16 rows of an mma and
//            tokens its columns: few tokens waste little, and a warp keeps its weights in registers. Codes, unsigned bytes,
//            times activations are exact integers; where a group ends they are scaled and added to the chain of its k chunk.
//            So neither the tile nor a split of k shows. Where a k chunk ends: ../../gemm_int8/cuda/k chunk.cuh. One group that
//            is all of k is split anywhere, its sums are integers up to the reduction
// Layouts    a, its sums of groups: PackedActivations (kernel.h).  w: layout/int4.h.  scales, zero points [groups,n].  out [m,n]
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -and, shift-> mma m16n8k32 u8 s8 -> s32
//            -group_end.cuh-> f32 -> out
// Features   lane q = lane / 4 has two neighbours of each 16, as rows q and q + 8
// Budget     regs <= 255; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IMMA, LDGSTS, LDSM
// Requires   w at a multiple of 16 bytes; what the workspace holds is aligned as it is
// Source     own; the ring is that of gemm_int4's sm80, codes as bytes are as in QServe, Lin et al., arXiv:2405.04532.
//            Reference: tests/reference/gemm_int4.py
#pragma once

#include <algorithm>
#include <climits>
#include <optional>

#include "base/int_math.h"
#include "device/device.h"
#include "gemm/cuda/k_chunk.cuh"
#include "gemm/cuda/store_rows.cuh"
#include "layout/int4.h"
#include "layout/swizzle.h"
#include "ops/gemm_int4_int8/cuda/group_end.cuh"
#include "ops/gemm_int4_int8/cuda/kernel.h"
#include "ops/gemm_int4_int8/cuda/scaler.cuh"
#include "quant/group_rows.cuh"

namespace lamina::gemm_int4_int8 {

struct Sm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // how its warps divide them
  int stages;            // of the ring
  int blocks_per_sm;
};

template <Sm80Config kConfig>
struct Sm80 {
  static constexpr const char* kName = "gemm_int4_int8_sm80";
  static constexpr int kWarps = kConfig.warps_m * kConfig.warps_n;
  static constexpr int kThreads = kWarps * dev::kWarpLanes;
  static constexpr int kMinBlocks = kConfig.blocks_per_sm;

  // What a warp computes: kTiles x 16 features of kWarpTokens.
  static constexpr int kWarpTokens = kConfig.block_m / kConfig.warps_m;
  static constexpr int kTiles = kConfig.block_n / kConfig.warps_n / int4::kTileN;
  static constexpr int kTokenGroups = kWarpTokens / 8;  // of an mma
  static_assert(kTokenGroups * 8 * kConfig.warps_m == kConfig.block_m && kTokenGroups % 2 == 0);
  static_assert(kTiles * int4::kTileN * kConfig.warps_n == kConfig.block_n);

  // A stage of the ring: rows of a, a tile of w for each 16 features, and what the groups have that end in it.
  static constexpr int kStepK = int4::kTileK;
  static constexpr int kRowChunks = kStepK / swizzle::kChunkBytes;
  static constexpr int kTilesN = kConfig.block_n / int4::kTileN;
  static constexpr int kBytesA = kConfig.block_m * kStepK;
  static constexpr int kBytesW = kTilesN * int4::kTileBytes;
  using Groups = GroupEnd<kConfig.block_m, kConfig.block_n, kSlices, kTiles, kTokenGroups>;
  static constexpr int kGroupsAt = kBytesA + kBytesW;
  static constexpr int kStageBytes = kGroupsAt + Groups::kStageBytes;
  static constexpr int kRingBytes = kConfig.stages * kStageBytes;

  // Behind the ring, the tokens' zero points; of each warp: the total of its k chunks, and where it was, its rows on the
  // way out.
  using Rows = StoreRows<kWarpTokens, TokenScaler>;
  static constexpr int kWarpsAt = kRingBytes + kConfig.block_m * 4;
  static constexpr int kWords = kTiles * kTokenGroups;  // of four sums
  static constexpr int kWarpBytes = kWords * dev::kWarpLanes * 16;
  static_assert(Rows::kBytes <= kWarpBytes && kWarpsAt % 16 == 0);
  static constexpr int kSmemBytes = kWarpsAt + kWarps * kWarpBytes;

  struct Args {
    CudaParams p;
    Split split;
    GroupArgs groups;
    int64_t a_stride;
    int steps;  // of all of k
    int blocks_m, blocks_n;
    uint32_t units;  // of work of a block: block_m x block_n outputs, one split
  };

  // Where a block is.
  struct Place {
    int64_t m0, n0;
    int first_step, steps;
    int warp_m, warp_n;
  };

  // Neighbouring units share weights.
  LAMINA_DEVICE static Place find_place(const Args& args, int unit) {
    const int column = unit / args.blocks_m, split = column / args.blocks_n;
    const int first = split * args.split.steps;
    const int left = args.steps > first ? args.steps - first : 0;
    return {static_cast<int64_t>(unit % args.blocks_m) * kConfig.block_m,
            static_cast<int64_t>(column % args.blocks_n) * kConfig.block_n,
            first,
            left < args.split.steps ? left : args.split.steps,
            dev::warp() % kConfig.warps_m,
            dev::warp() / kConfig.warps_m};
  }

  // What a thread copies: its chunk of the rows of a, of few rows not every thread, and of the tiles of w, in passes.
  static constexpr int kRowsPerPass = std::min(kThreads / kRowChunks, kConfig.block_m);
  static constexpr int kPassesA = kConfig.block_m / kRowsPerPass;
  static_assert(kPassesA * kRowsPerPass == kConfig.block_m && kRowsPerPass % 8 == 0);
  static constexpr int kPassesW = kTilesN / kWarps;
  static_assert(kPassesW * kWarps == kTilesN);

  struct Source {
    const int8_t* a;  // of the first pass; the next step is kStepK further
    const uint8_t* w;
    int64_t w_pass;     // bytes between passes
    int rows, columns;  // of the block that are there, from this thread's first
    int group;          // the next to end
  };

  LAMINA_DEVICE static Source find_source(const Args& args, const Place& at) {
    const CudaParams& p = args.p;
    const int row = dev::thread_index() / kRowChunks, chunk = dev::thread_index() % kRowChunks;
    const int64_t column = at.n0 / int4::kTileN + dev::warp();
    const int64_t rows = p.problem.m - at.m0 - row;
    const int64_t columns = int4::tiles_n(p.problem.n) - column;
    return {p.a + (at.m0 + row) * args.a_stride + static_cast<int64_t>(at.first_step) * kStepK +
                chunk * swizzle::kChunkBytes,
            p.w + (column * args.steps + at.first_step) * int4::kTileBytes + dev::lane() * 16,
            static_cast<int64_t>(args.steps) * (kWarps * int4::kTileBytes),
            row >= kConfig.block_m   ? 0
            : rows < kConfig.block_m ? static_cast<int>(rows)
                                     : kConfig.block_m,
            static_cast<int>(columns < kTilesN ? columns : kTilesN),
            args.groups.of_slice(at.first_step * kSlices)};
  }

  // Starts the copies of one step into a stage; `from` moves on to the next step.
  LAMINA_DEVICE static void load_step(const Args& args, const Place& at, Source& from, int step,
                                      std::byte* stage) {
    const CudaParams& p = args.p;
    const int row = dev::thread_index() / kRowChunks, chunk = dev::thread_index() % kRowChunks;
    std::byte* const to =
        stage + (row * kRowChunks + swizzle::half_row_chunk(row, chunk)) * swizzle::kChunkBytes;
    if (row < kRowsPerPass)
#pragma unroll
      for (int pass = 0; pass < kPassesA; ++pass) {
        const bool is_there = pass * kRowsPerPass < from.rows;
        dev::cp_async<16>(to + pass * (kRowsPerPass * kStepK),
                          is_there ? from.a + pass * (kRowsPerPass * args.a_stride) : p.a,
                          is_there ? 16 : 0);
      }
#pragma unroll
    for (int pass = 0; pass < kPassesW; ++pass) {
      const bool is_there = pass * kWarps < from.columns;
      dev::cp_async<16>(stage + kBytesA + (pass * kThreads + dev::thread_index()) * 16,
                        is_there ? from.w + pass * from.w_pass : p.w, is_there ? 16 : 0);
    }
    const int count = args.groups.count_ends(from.group, (step + 1) * kSlices);
    if (count > 0)
      Groups::template load<kThreads>(args, at.m0, at.n0, from.group, count, dev::thread_index(),
                                      stage + kGroupsAt);
    from.group += count;
    from.a += kStepK;
    from.w += int4::kTileBytes;
  }

  // The products of one slice or two, whose codes are words `word` and `word + 1` of each tile.
  LAMINA_DEVICE static void multiply_slices(const Args& args, const Place& at,
                                            const std::byte* stage, int slice, bool is_pair,
                                            const dev::U32x4 (&codes)[kTiles], int word,
                                            Groups& group) {
    const int lane = dev::lane();
    uint32_t b[kTokenGroups / 2][4];
#pragma unroll
    for (int j = 0; j < kTokenGroups / 2; ++j) {
      const int row = at.warp_m * kWarpTokens + j * 16 + lane / 16 * 8 + lane % 8;
      const int chunk = slice + (is_pair ? lane / 8 % 2 : 0);
      dev::ldmatrix(b[j], stage + (row * kRowChunks + swizzle::half_row_chunk(row, chunk)) * 16);
    }
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

  LAMINA_DEVICE static void multiply_step(const Args& args, const Place& at, int step,
                                          const std::byte* stage, Groups& group) {
    dev::U32x4 codes[kTiles];
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      codes[i] = dev::load_shared(reinterpret_cast<const dev::U32x4*>(
          stage + kBytesA + (at.warp_n * kTiles + i) * int4::kTileBytes + dev::lane() * 16));
    group.row = 0;
    int end = args.groups.end_of(group.index) - step * kSlices;
#pragma unroll 1
    for (int slice = 0; slice < kSlices;) {
      if (slice == 0 && end >= kSlices) {
        multiply_slices(args, at, stage, 0, true, codes, 0, group);
        multiply_slices(args, at, stage, 2, true, codes, 2, group);
        slice = kSlices;
      } else {  // groups end within the tile
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
        group.end(args, at, stage + kGroupsAt, tokens_zero());
        end = args.groups.end_of(group.index) - step * kSlices;
      }
    }
  }

  // [block_m], if a_zero_point is given.
  LAMINA_DEVICE static int32_t* tokens_zero() {
    return reinterpret_cast<int32_t*>(dev::dynamic_smem() + kRingBytes);
  }
  LAMINA_DEVICE static void keep_zero_points(const Args& args, const Place& at) {
    if (!args.p.a_zero_point.is_given()) return;
    for (int t = dev::thread_index(); t < kConfig.block_m; t += kThreads) {
      const int64_t i = at.m0 + t;
      dev::store_shared(tokens_zero() + t,
                        i < args.p.problem.m ? int32_t{args.p.a_zero_point[i]} : 0);
    }
  }

  // Into the partial of a k chunk, or to the epilogue and out.
  template <bool kToPartial>
  LAMINA_DEVICE static void store(const Args& args, const Place& at, int64_t partial,
                                  const Groups& group) {
    std::byte* const rows = dev::dynamic_smem() + kWarpsAt + dev::warp() * kWarpBytes;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int64_t n0 = at.n0 + (at.warp_n * kTiles + i) * int4::kTileN;
      Rows::template store<kToPartial>(args.p, args.split,
                                       {at.m0 + at.warp_m * kWarpTokens, n0, partial}, rows,
                                       dev::lane() / 4, group.k_chunk[i]);
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
    Groups group;
    group.begin(from.group);
    const auto sum = [&](int w, int e) -> float& { return (&group.k_chunk[0][0])[w][e]; };
    const auto to_partial = [&](int64_t partial) { store<true>(args, at, partial, group); };
    const KChunkEnd<kWords, dev::kWarpLanes, decltype(sum), decltype(to_partial)> end_k_chunk{
        sum, to_partial,
        reinterpret_cast<dev::U32x4*>(smem + kWarpsAt + dev::warp() * kWarpBytes) + dev::lane(),
        args.groups.chunk_steps};
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    keep_zero_points(args, at);
#pragma unroll
    for (int s = 0; s < kConfig.stages - 1; ++s) {
      if (s < at.steps) load_step(args, at, from, at.first_step + s, stage(s));
      dev::cp_async_commit();
    }
#pragma unroll 1
    for (int s = 0; s < at.steps; ++s) {
      dev::cp_async_wait<kConfig.stages - 2>();
      dev::block_sync();  // step s has arrived for all; the stage of step s - 1 is free
      const int next = s + kConfig.stages - 1;
      if (next < at.steps) load_step(args, at, from, at.first_step + next, stage(next));
      dev::cp_async_commit();
      multiply_step(args, at, at.first_step + s, stage(s), group);
      if (args.groups.keeps_integers && s + 1 == at.steps)
        group.keep_integers(args, at, tokens_zero());
      end_k_chunk(args.split, at.first_step + s + 1, s + 1 == at.steps);
    }
    if (args.split.count == 1) store<false>(args, at, 0, group);
  }

  static Status start(const CudaParams& params, const Split& split, int max_blocks, void* stream) {
    const Problem& p = params.problem;
    const int64_t blocks_m = ceil_div(p.m, kConfig.block_m);
    const int64_t blocks_n = ceil_div(p.n, kConfig.block_n);
    const std::optional<int64_t> units = checked_product(blocks_m, blocks_n, split.count);
    if (!units || *units > INT_MAX)
      return Status::error("gemm_int4_int8: m = ", p.m, ", n = ", p.n, ": more than ", INT_MAX,
                           " tiles of ", kConfig.block_m, " x ", kConfig.block_n);
    return dev::launch<Sm80>(
        {{static_cast<int>(std::min<int64_t>(*units, max_blocks)), 1, 1}, kSmemBytes}, stream,
        {params, split, GroupArgs::of(params, split), PackedActivations::a_stride(p),
         static_cast<int>(int4::tiles_k(p.k)), static_cast<int>(blocks_m),
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
          .step_cycles = 100,
          .launch = &launch_as<CudaParams, &Kernel::start>};
}

}  // namespace lamina::gemm_int4_int8
