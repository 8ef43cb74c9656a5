// gemm_int4 / sm80:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: ../../gemm_int8/epilogue.h
//
// Algorithm  a block owns block_m tokens x block_n features and whole k chunks of k. Weights are the 16 rows of an mma and
//            tokens its columns: few tokens waste little, and a warp keeps its weights in registers. A k chunk is one
//            chain of products in the order of k, so neither the tile nor a split of k shows. Where a k chunk ends:
//            ../../gemm_int8/cuda/k chunk.cuh
// Layouts    a [m,k] row-major, f16 or bf16.  w: layout/int4.h.  scales, zero points [groups,n].  out [m,n] row-major
// Data path  gmem -cp.async-> smem ring -ldmatrix (a), 16-byte loads (w)-> regs -dequantize.cuh-> mma m16n8k16 -> f32 -> out
// Features   lane q = lane / 4 has two neighbours of each 16, as rows q and q + 8
// Budget     regs <= 232; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: HMMA, LDGSTS, LDSM
// Requires   nothing of alignment: 16-byte copies where rows allow them, else smaller ones
// Source     own; the ring is that of gemm_int8's sm80. Reference: tests/reference/gemm_int4.py
#pragma once

#include <algorithm>
#include <climits>
#include <optional>

#include "base/int_math.h"
#include "block/row_copy.cuh"
#include "device/device.h"
#include "gemm/cuda/k_chunk.cuh"
#include "gemm/cuda/store_rows.cuh"
#include "layout/int4.h"
#include "layout/swizzle.h"
#include "ops/gemm_int4/cuda/dequantize.cuh"
#include "ops/gemm_int4/cuda/run.h"
#include "ops/gemm_int4/cuda/stage_groups.cuh"
#include "quant/gather.cuh"

namespace lamina::gemm_int4 {

struct Sm80Config {
  int block_m, block_n;  // outputs of a block
  int warps_m, warps_n;  // how its warps divide them
  int step_tiles;        // tiles of 64 k in a step of the ring
  int stages;
  int blocks_per_sm;
};

template <Sm80Config kConfig, class T>
struct Sm80 {
  static constexpr const char* kName = "gemm_int4_sm80";
  static constexpr int kWarps = kConfig.warps_m * kConfig.warps_n;
  static constexpr int kThreads = kWarps * dev::kWarpLanes;
  static constexpr int kMinBlocks = kConfig.blocks_per_sm;

  // What a warp computes: kTiles x 16 features of kWarpTokens.
  static constexpr int kWarpTokens = kConfig.block_m / kConfig.warps_m;
  static constexpr int kTiles = kConfig.block_n / kConfig.warps_n / int4::kTileN;
  static constexpr int kTokenGroups = kWarpTokens / 8;  // of an mma
  static_assert(kTokenGroups * 8 * kConfig.warps_m == kConfig.block_m && kTokenGroups % 2 == 0);
  static_assert(kTiles * int4::kTileN * kConfig.warps_n == kConfig.block_n);

  // A stage of the ring: rows of a, tiles of w [n / 16][k / 64], the scales and zero points of the groups it touches.
  static constexpr int kStepK = kConfig.step_tiles * int4::kTileK;
  static constexpr int kStepSlices = kStepK / kSliceK;
  static constexpr int kRowChunks = kStepK * 2 / swizzle::kChunkBytes;
  static constexpr int kTilesN = kConfig.block_n / int4::kTileN;
  static constexpr int kBytesA = kConfig.block_m * kStepK * 2;
  static constexpr int kBytesW = kTilesN * kConfig.step_tiles * int4::kTileBytes;
  using Groups = StageGroups<T, kConfig.block_n, kStepSlices>;
  static constexpr int kGroupsAt = kBytesA + kBytesW;
  static constexpr int kStageBytes = kGroupsAt + Groups::kBytes;
  static constexpr int kRingBytes = kConfig.stages * kStageBytes;
  static_assert(kChunkK % kStepK == 0);

  // Behind the ring, of each warp: the total of its k chunks, and where it was, its rows on the way out.
  using Rows = StoreRows<kWarpTokens, Unscaled>;
  static constexpr int kWords = kTiles * kTokenGroups;  // of four sums
  static constexpr int kWarpBytes = kWords * dev::kWarpLanes * 16;
  static_assert(Rows::kBytes <= kWarpBytes);
  static constexpr int kSmemBytes = kRingBytes + kWarps * kWarpBytes;

  struct Args {
    Params p;
    Split split;
    GroupArgs groups;
    int a_copy_bytes;  // 16, 4 or 1: what the alignment of a's rows allows
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
    const int all = static_cast<int>(ceil_div(args.p.problem.k, kStepK));
    const int first = split * args.split.steps;
    const int left = all > first ? all - first : 0;
    return {static_cast<int64_t>(unit % args.blocks_m) * kConfig.block_m,
            static_cast<int64_t>(column % args.blocks_n) * kConfig.block_n,
            first,
            left < args.split.steps ? left : args.split.steps,
            dev::warp() % kConfig.warps_m,
            dev::warp() / kConfig.warps_m};
  }

  // What a thread copies: its chunk of the rows of a and of the tiles of w, in passes.
  static constexpr int kRowsPerPass = kThreads / kRowChunks;
  static constexpr int kPassesA = kConfig.block_m / kRowsPerPass;
  static_assert(kThreads % kRowChunks == 0 && kPassesA * kRowsPerPass == kConfig.block_m &&
                kRowsPerPass % 8 == 0);
  static constexpr int kPassesW = kTilesN * kConfig.step_tiles / kWarps;
  static constexpr int kPassColumns = kWarps / kConfig.step_tiles;  // of tiles of w
  static_assert(kPassesW * kWarps == kTilesN * kConfig.step_tiles &&
                kPassColumns * kConfig.step_tiles == kWarps);

  struct Source {
    const std::byte* a;  // of the first pass; the next step is kStepK further. With a perm the row
    const uint8_t* w;
    int64_t a_pass, w_pass;  // bytes between passes
    int rows, columns;       // of the block that are there, from this thread's first
    typename Groups::Next group;
  };

  LAMINA_DEVICE static Source find_source(const Args& args, const Place& at) {
    const Params& p = args.p;
    const int row = dev::thread_index() / kRowChunks, chunk = dev::thread_index() % kRowChunks;
    const int64_t tiles_k = int4::tiles_k(p.problem.k);
    const int64_t column = at.n0 / int4::kTileN + dev::warp() / kConfig.step_tiles;
    const int64_t tile_k =
        static_cast<int64_t>(at.first_step) * kConfig.step_tiles + dev::warp() % kConfig.step_tiles;
    const int64_t rows = p.problem.m - at.m0 - row;
    const int64_t columns = int4::tiles_n(p.problem.n) - column;
    const int64_t begin = static_cast<int64_t>(at.first_step) * (kStepK * 2) + chunk * 16;
    return {static_cast<const std::byte*>(p.a) + (at.m0 + row) * p.a_stride * 2 +
                (p.perm.is_given() ? 0 : begin),
            p.w + (column * tiles_k + tile_k) * int4::kTileBytes + dev::lane() * 16,
            p.a_stride * 2 * kRowsPerPass,
            tiles_k * kPassColumns * int4::kTileBytes,
            static_cast<int>(rows < kConfig.block_m ? rows : kConfig.block_m),
            static_cast<int>(columns < kTilesN ? columns : kTilesN),
            Groups::Next::at(args.groups, at.first_step * kStepSlices)};
  }

  // Starts the copies of one step into a stage; `from` moves on to the next step.
  LAMINA_DEVICE static void load_step(const Args& args, const Place& at, Source& from, int step,
                                      std::byte* stage) {
    const Params& p = args.p;
    const int row = dev::thread_index() / kRowChunks, chunk = dev::thread_index() % kRowChunks;
    const int64_t left = (p.problem.k - static_cast<int64_t>(step) * kStepK) * 2 - chunk * 16;
    const int valid = left < 0 ? 0 : left > 16 ? 16 : static_cast<int>(left);
    const auto* const base = static_cast<const std::byte*>(p.a);
    const auto to = [&](int pass) {
      return stage + ((row + pass * kRowsPerPass) * kRowChunks + swizzle::row_chunk(row, chunk)) *
                         swizzle::kChunkBytes;
    };
    const auto bytes = [&](int pass) { return pass * kRowsPerPass < from.rows ? valid : 0; };
    if (args.a_copy_bytes == 16) {
#pragma unroll
      for (int pass = 0; pass < kPassesA; ++pass)
        dev::cp_async<16>(to(pass), bytes(pass) > 0 ? from.a + pass * from.a_pass : base,
                          bytes(pass));
    } else {
#pragma unroll 1  // the slow paths; unrolled, their registers are the kernel's
      for (int pass = 0; pass < kPassesA; ++pass) {
        if (p.perm.is_given()) {
          const int64_t begin = static_cast<int64_t>(step) * kStepK + chunk * 8;
          gather_chunk(to(pass), reinterpret_cast<const uint16_t*>(from.a + pass * from.a_pass),
                       p.perm, begin, bytes(pass) / 2);
        } else {
          copy_unaligned(args.a_copy_bytes, to(pass), from.a + pass * from.a_pass, base,
                         bytes(pass));
        }
      }
    }
    const int tile_k = step * kConfig.step_tiles + dev::warp() % kConfig.step_tiles;
    const int columns = tile_k < int4::tiles_k(p.problem.k) ? from.columns : 0;
#pragma unroll
    for (int pass = 0; pass < kPassesW; ++pass) {
      const bool is_there = pass * kPassColumns < columns;
      dev::cp_async<16>(stage + kBytesA + (pass * kThreads + dev::thread_index()) * 16,
                        is_there ? from.w + pass * from.w_pass : p.w, is_there ? 16 : 0);
    }
    Groups::template load<kThreads>(args.groups, from.group, step * kStepSlices, at.n0, p.problem.n,
                                    dev::thread_index(), stage + kGroupsAt);
    if (!p.perm.is_given()) from.a += kStepK * 2;
    from.w += kConfig.step_tiles * int4::kTileBytes;
  }

  using Group = typename Groups::template Reached<kTiles>;

  using Quads = float[kTiles][kTokenGroups][4];

  // The products of 16 k, whose codes are word `word` of each tile; valid: of the 16, where kIsMasked.
  template <bool kIsMasked>
  LAMINA_DEVICE static void multiply_slice(const Place& at, const std::byte* stage, int slice,
                                           const dev::U32x4 (&codes)[kTiles], int word, int valid,
                                           const Group& group, Quads& sums) {
    const int lane = dev::lane();
    uint32_t b[kTokenGroups / 2][4];
#pragma unroll
    for (int j = 0; j < kTokenGroups / 2; ++j) {
      const int row = at.warp_m * kWarpTokens + j * 16 + lane / 16 * 8 + lane % 8;
      const int chunk = slice * 2 + lane / 8 % 2;
      dev::ldmatrix(b[j], stage + (row * kRowChunks + swizzle::row_chunk(row, chunk)) * 16);
    }
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

  LAMINA_DEVICE static void multiply_step(const Args& args, const Place& at, int step,
                                          const std::byte* stage, Group& group, Quads& sums) {
    const int begin = step * kStepSlices;
    group.begin_stage(begin);
    const auto enter_group = [&] {
      group.enter(args.groups, stage + kGroupsAt,
                  at.warp_n * kTiles * int4::kTileN + dev::lane() / 4 * 2);
    };
#pragma unroll 1
    for (int t = 0; t < kConfig.step_tiles; ++t) {
      dev::U32x4 codes[kTiles];
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int tile = (at.warp_n * kTiles + i) * kConfig.step_tiles + t;
        codes[i] = dev::load_shared(reinterpret_cast<const dev::U32x4*>(
            stage + kBytesA + tile * int4::kTileBytes + dev::lane() * 16));
      }
      const int first = t * kSlices;
      if (group.end <= begin + first) enter_group();
      const int64_t left = args.p.problem.k - static_cast<int64_t>(begin + first) * kSliceK;
      if (group.end - begin - first >= kSlices && left >= int4::kTileK) {
#pragma unroll
        for (int s = 0; s < kSlices; ++s)
          multiply_slice<false>(at, stage, first + s, codes, s, kSliceK, group, sums);
      } else {  // groups, or k, end within the tile
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

  // Into the partial of a k chunk, or to the epilogue and out.
  template <bool kToPartial>
  LAMINA_DEVICE static void store(const Args& args, const Place& at, int64_t partial,
                                  const Quads& sums) {
    std::byte* const rows = dev::dynamic_smem() + kRingBytes + dev::warp() * kWarpBytes;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int64_t n0 = at.n0 + (at.warp_n * kTiles + i) * int4::kTileN;
      Rows::template store<kToPartial>(args.p, args.split,
                                       {at.m0 + at.warp_m * kWarpTokens, n0, partial}, rows,
                                       dev::lane() / 4, sums[i]);
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
    Quads sums;
    const auto sum = [&](int w, int e) -> float& { return (&sums[0][0])[w][e]; };
    const auto to_partial = [&](int64_t partial) { store<true>(args, at, partial, sums); };
    const KChunkEnd<kWords, dev::kWarpLanes, decltype(sum), decltype(to_partial)> end_k_chunk{
        sum, to_partial,
        reinterpret_cast<dev::U32x4*>(smem + kRingBytes + dev::warp() * kWarpBytes) + dev::lane(),
        static_cast<int>(kChunkK / kStepK)};
    end_k_chunk.clear(empty_sum(args.p.problem.k));
    Group group;
    group.start(args.groups, at.first_step * kStepSlices);
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
      multiply_step(args, at, at.first_step + s, stage(s), group, sums);
      end_k_chunk(args.split, at.first_step + s + 1, s + 1 == at.steps);
    }
    if (args.split.count == 1) store<false>(args, at, 0, sums);
  }

  static Status start(const Params& params, const Split& split, int max_blocks, void* stream) {
    const Problem& p = params.problem;
    const int64_t blocks_m = ceil_div(p.m, kConfig.block_m);
    const int64_t blocks_n = ceil_div(p.n, kConfig.block_n);
    const std::optional<int64_t> units = checked_product(blocks_m, blocks_n, split.count);
    if (!units || *units > INT_MAX)
      return Status::error("gemm_int4: m = ", p.m, ", n = ", p.n, ": more than ", INT_MAX,
                           " tiles of ", kConfig.block_m, " x ", kConfig.block_n);
    const dev::LaunchShape shape{{static_cast<int>(std::min<int64_t>(*units, max_blocks)), 1, 1},
                                 kSmemBytes};
    return dev::launch<Sm80>(
        shape, stream,
        {params, split, GroupArgs::of(params), a_copy_bytes(params), static_cast<int>(blocks_m),
         static_cast<int>(blocks_n), static_cast<uint32_t>(*units)});
  }
};

// Of both dtypes of a.
template <Sm80Config kConfig>
CudaKernel sm80_kernel(const char* name) {
  using Kernel = Sm80<kConfig, F16>;
  return {.name = name,
          .arch = 80,
          .tile_m = kConfig.block_m,
          .tile_n = kConfig.block_n,
          .step_k = Kernel::kStepK,
          .blocks_per_sm = kConfig.blocks_per_sm,
          .smem_bytes = Kernel::kSmemBytes,
          .macs_per_cycle = 1024,
          .step_cycles = 100,
          .launch = [](const void* erased, const Split& split, int max_blocks, void* stream) {
            const Params& params = *static_cast<const Params*>(erased);
            const auto start =
                params.a_dtype == DType::kF16 ? &Kernel::start : &Sm80<kConfig, BF16>::start;
            return start(params, split, max_blocks, stream);
          }};
}

}  // namespace lamina::gemm_int4
