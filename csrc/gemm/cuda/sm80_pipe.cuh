// The pipeline of all products on sm_80: blocks divide the outputs, and all threads of a block fill its ring of stages.
//
// Algorithm  a block computes units one after another; a unit is block_m x block_n outputs of one split of k. In each
//            pass over the rows of a and the tiles of w, a thread copies one chunk of 16 bytes. It starts the copies of
//            a step stages - 1 steps before the products of the step
// Data path  gmem -cp.async-> smem ring
// Layouts    a stage: rows of a; tiles of w [feature / 16][k / 64]; scales of the step's groups
// Source     own; ring as in CUTLASS's multistage mainloop
#pragma once

#include <algorithm>
#include <climits>
#include <optional>

#include "base/int_math.h"
#include "block/row_copy.cuh"
#include "device/device.h"
#include "gemm/cuda/kernel.h"
#include "layout/int4.h"
#include "layout/int8_tile.h"
#include "layout/swizzle.h"
#include "quant/gather.cuh"

namespace lamina::gemm {

struct Sm80Shape {
  int block_m, block_n;           // outputs of a block
  int warps_m, warps_n, warps_k;  // warps along the rows, the columns and the k tiles of a step
  int step_tiles;                 // tiles of 64 k in a step of the ring
  int stages;
  int a_bytes;      // bytes of an element of a
  int tile_bytes;   // bytes of a tile of w
  int group_bytes;  // bytes of group operands in a stage
};

// How a launch divides a product into units.
struct Sm80Units {
  int blocks_m, blocks_n;
  int tiles_k;     // tiles of w along k
  uint32_t count;  // blocks_m x blocks_n x splits
};

template <Sm80Shape kShape>
struct Sm80Pipe {
  static constexpr int kTileN = int4::kTileN, kTileK = int4::kTileK;  // a tile of w
  static_assert(kTileN == int8_tile::kTileN && kTileK == int8_tile::kTileK);

  static constexpr int kWarps = kShape.warps_m * kShape.warps_n * kShape.warps_k;
  static constexpr int kThreads = kWarps * dev::kWarpLanes;
  static constexpr int kStepK = kShape.step_tiles * kTileK;
  static constexpr int kRowBytes = kStepK * kShape.a_bytes;
  static constexpr int kRowChunks = kRowBytes / swizzle::kChunkBytes;
  static constexpr int kTilesN = kShape.block_n / kTileN;
  static constexpr int kBytesA = kShape.block_m * kRowBytes;
  static constexpr int kGroupsAt = kBytesA + kTilesN * kShape.step_tiles * kShape.tile_bytes;
  static constexpr int kStageBytes = kGroupsAt + kShape.group_bytes;
  static constexpr int kRingBytes = kShape.stages * kStageBytes;

  // The start of a unit, and the part of its outputs and of its k that this warp computes.
  struct Place {
    int64_t m0, n0;
    int split, first_step, steps;
    int warp_m, warp_n, warp_k;

    constexpr bool is_last(int step) const { return step + 1 == first_step + steps; }
  };

  // Units with neighbouring indices share weights.
  LAMINA_DEVICE static Place find_place(const auto& args, uint32_t index) {
    const int unit = static_cast<int>(index), warp = dev::warp();
    const int column = unit / args.units.blocks_m, split = column / args.units.blocks_n;
    const int all = (args.units.tiles_k + kShape.step_tiles - 1) / kShape.step_tiles;
    const int first = split * args.split.steps, left = all > first ? all - first : 0;
    return {static_cast<int64_t>(unit % args.units.blocks_m) * kShape.block_m,
            static_cast<int64_t>(column % args.units.blocks_n) * kShape.block_n,
            split,
            first,
            left < args.split.steps ? left : args.split.steps,
            warp % kShape.warps_m,
            warp / kShape.warps_m % kShape.warps_n,
            warp / (kShape.warps_m * kShape.warps_n)};
  }

  // The byte of a stage where a chunk of a row of a starts.
  LAMINA_DEVICE static int chunk_at(int row, int chunk) {
    const int in_row =
        kRowChunks == 4 ? swizzle::half_row_chunk(row, chunk) : swizzle::row_chunk(row, chunk);
    return (row * kRowChunks + in_row) * swizzle::kChunkBytes;
  }

  // A thread's copies of the operands. In a block of few rows some threads copy only weights.
  struct Copies {
    const std::byte *a, *w;  // sources of this thread's chunks in the first pass of the next step
    int rows, columns;       // existing rows of a and columns of tiles, from this thread's first

    static constexpr int kRowsPerPass = std::min(kThreads / kRowChunks, kShape.block_m);
    static constexpr int kPassesA = kShape.block_m / kRowsPerPass;
    static_assert(kThreads % kRowChunks == 0 && kPassesA * kRowsPerPass == kShape.block_m &&
                  kRowsPerPass % 8 == 0);
    // In each pass the threads copy whole tiles; if the chunks of tiles do not divide the threads, whole columns of tiles
    // in any number of passes, a thread's chunks being kThreads apart.
    static constexpr int kTileChunks = kShape.tile_bytes / swizzle::kChunkBytes;
    static constexpr bool kPassesAreTiles = kThreads % kTileChunks == 0;
    static constexpr int kTilesPerPass = kPassesAreTiles ? kThreads / kTileChunks : 1;
    static constexpr int kPassTilesK = std::min(kTilesPerPass, kShape.step_tiles);
    static constexpr int kPassColumns = kTilesPerPass / kPassTilesK;
    static constexpr int kPassesK =
        kShape.step_tiles / kPassTilesK;  // passes over a column of tiles
    static constexpr int kPassesW = kTilesN / kPassColumns * kPassesK;
    static_assert(kPassTilesK * kPassColumns == kTilesPerPass && kTilesN % kPassColumns == 0);

    LAMINA_DEVICE static int row() { return dev::thread_index() / kRowChunks; }
    LAMINA_DEVICE static int chunk() { return dev::thread_index() % kRowChunks; }
    LAMINA_DEVICE static int tile_n() {
      return kPassesAreTiles ? dev::thread_index() / kTileChunks / kPassTilesK : 0;
    }
    LAMINA_DEVICE static int tile_k() {
      return kPassesAreTiles ? dev::thread_index() / kTileChunks % kPassTilesK : 0;
    }

    LAMINA_DEVICE static Copies at(const auto& args, const Place& at) {
      const Problem& p = args.p.problem;
      const void* const a = args.p.a;
      const void* const w = args.p.w;
      const int64_t rows = p.m - at.m0 - row();
      const int64_t column = at.n0 / kTileN + tile_n();
      const int64_t columns = int4::tiles_n(p.n) - column;
      const int64_t first = at.first_step;
      return {static_cast<const std::byte*>(a) + (at.m0 + row()) * args.row_bytes() +
                  first * kRowBytes + chunk() * swizzle::kChunkBytes,
              static_cast<const std::byte*>(w) +
                  (column * args.units.tiles_k + first * kShape.step_tiles + tile_k()) *
                      kShape.tile_bytes +
                  (kPassesAreTiles ? dev::thread_index() % kTileChunks * swizzle::kChunkBytes : 0),
              static_cast<int>(rows < kShape.block_m ? rows : kShape.block_m),
              static_cast<int>(columns < kTilesN ? columns : kTilesN)};
    }

    // The bytes of this thread's chunk that lie within k.
    LAMINA_DEVICE static int valid_bytes(const auto& args, int step) {
      const int64_t columns = args.p.problem.k - static_cast<int64_t>(step) * kStepK;
      const int64_t left = columns * kShape.a_bytes - chunk() * swizzle::kChunkBytes;
      return left < 0 ? 0 : left > 16 ? 16 : static_cast<int>(left);
    }

    // Starts the copies of one step's rows of a. Rows from m on, and bytes of a chunk from `valid` on, become zeros.
    LAMINA_DEVICE void start_rows(const auto& args, int valid, std::byte* stage) const {
      const void* const base = args.p.a;
      if (kThreads / kRowChunks == kRowsPerPass || row() < kRowsPerPass)
#pragma unroll
        for (int pass = 0; pass < kPassesA; ++pass) {
          const int bytes = pass * kRowsPerPass < rows ? valid : 0;
          dev::cp_async<16>(row_at(stage, pass), bytes > 0 ? a + pass * a_pass(args) : base, bytes);
        }
    }

    // The same with copy(to, from, valid), for rows that do not start at multiples of 16 bytes.
    LAMINA_DEVICE void start_rows(const auto& args, int valid, std::byte* stage,
                                  const auto& copy) const {
      if (kThreads / kRowChunks > kRowsPerPass && row() >= kRowsPerPass) return;
#pragma unroll 1  // unrolled, these slow paths would need more registers than the rest of the kernel
      for (int pass = 0; pass < kPassesA; ++pass)
        copy(row_at(stage, pass), a + pass * a_pass(args), pass * kRowsPerPass < rows ? valid : 0);
    }

    // The same for rows at any address, or for rows that args.p.perm gathers. args: a_copy_bytes, the bytes of one copy
    // of a: 16, 4 or 1, and 1 for a gather.
    LAMINA_DEVICE void start_any_rows(const auto& args, int step, std::byte* stage) const {
      const int valid = valid_bytes(args, step);
      if (args.a_copy_bytes == 16) return start_rows(args, valid, stage);
      const void* const base = args.p.a;
      start_rows(args, valid, stage, [&](std::byte* to, const std::byte* from, int bytes) {
        if constexpr (requires { args.p.perm; }) {
          if (args.p.perm.is_given()) {
            const int64_t begin = static_cast<int64_t>(step) * kStepK + chunk() * 8;
            const auto* const row = reinterpret_cast<const uint16_t*>(from) - begin;
            return gather_chunk(to, row, args.p.perm, begin, bytes / 2);
          }
        }
        copy_unaligned(args.a_copy_bytes, to, from, static_cast<const std::byte*>(base), bytes);
      });
    }

    // Starts the copies of one step's tiles of w.
    LAMINA_DEVICE void start_tiles(const auto& args, int step, std::byte* stage) const {
      if constexpr (!kPassesAreTiles) return start_columns(args, step, stage);
      const void* const base = args.p.w;
      const int left =
          kShape.step_tiles == 1 ? 1 : args.units.tiles_k - step * kShape.step_tiles - tile_k();
      std::byte* const to = stage + kBytesA + tile_at();
#pragma unroll
      for (int pass = 0; pass < kPassesW; ++pass) {
        const int column = pass / kPassesK * kPassColumns, k = pass % kPassesK * kPassTilesK;
        const bool is_there = column < columns && k < left;
        dev::cp_async<16>(to + (column * kShape.step_tiles + k) * kShape.tile_bytes,
                          is_there ? w + column * w_column(args) + k * kShape.tile_bytes : base,
                          is_there ? 16 : 0);
      }
    }

    LAMINA_DEVICE void advance() {
      a += kRowBytes;
      w += kShape.step_tiles * kShape.tile_bytes;
    }

   private:
    LAMINA_DEVICE void start_columns(const auto& args, int step, std::byte* stage) const {
      constexpr int kColumnChunks = kShape.step_tiles * kTileChunks;
      constexpr int kChunks = kTilesN * kColumnChunks;
      const void* const base = args.p.w;
      const int left = (args.units.tiles_k - step * kShape.step_tiles) * kTileChunks;
#pragma unroll
      for (int pass = 0; pass * kThreads < kChunks; ++pass) {
        const int at = pass * kThreads + dev::thread_index();
        const int column = at / kColumnChunks, in_column = at % kColumnChunks;
        const bool is_there = column < columns && in_column < left;
        if (kChunks % kThreads == 0 || at < kChunks)
          dev::cp_async<16>(
              stage + kBytesA + at * swizzle::kChunkBytes,
              is_there ? w + column * w_column(args) + in_column * swizzle::kChunkBytes : base,
              is_there ? 16 : 0);
      }
    }

    // Bytes between passes of a, and between columns of tiles of w.
    LAMINA_DEVICE static int64_t a_pass(const auto& args) {
      return args.row_bytes() * kRowsPerPass;
    }
    LAMINA_DEVICE static int64_t w_column(const auto& args) {
      return static_cast<int64_t>(args.units.tiles_k) * kShape.tile_bytes;
    }

    LAMINA_DEVICE static std::byte* row_at(std::byte* stage, int pass) {
      return stage + chunk_at(row(), chunk()) + pass * (kRowsPerPass * kRowBytes);
    }

    // The place of this thread's chunk among the tiles of a stage, in bytes. A lane reads a chunk of an int4 tile as a
    // whole; the rows of an int8_tile are swizzled.
    LAMINA_DEVICE static int tile_at() {
      const int in_tile = dev::thread_index() % kTileChunks, row = in_tile / 4;
      const int to = kShape.tile_bytes == int8_tile::kTileBytes
                         ? row * 4 + swizzle::tile_chunk(row, in_tile % 4)
                         : in_tile;
      return (tile_n() * kShape.step_tiles + tile_k()) * kShape.tile_bytes +
             to * swizzle::kChunkBytes;
    }
  };

  // Calls multiply(step, stage) for each step of a unit. KernelCopies: at(args, place) makes the copies of a unit;
  // start(args, place, step, stage) starts the copies of the next step.
  template <class KernelCopies>
  LAMINA_DEVICE static void for_steps(const auto& args, const Place& at, const auto& multiply) {
    auto copies = KernelCopies::at(args, at);
    const auto stage = [](int s) { return dev::dynamic_smem() + s % kShape.stages * kStageBytes; };
#pragma unroll
    for (int s = 0; s < kShape.stages - 1; ++s) {
      if (s < at.steps) copies.start(args, at, at.first_step + s, stage(s));
      dev::cp_async_commit();
    }
#pragma unroll 1
    for (int s = 0; s < at.steps; ++s) {
      dev::cp_async_wait<kShape.stages - 2>();
      dev::block_sync();  // step s has arrived for all; the stage of step s - 1 is free
      const int next = s + kShape.stages - 1;
      if (next < at.steps) copies.start(args, at, at.first_step + next, stage(next));
      dev::cp_async_commit();
      multiply(at.first_step + s, stage(s));
    }
  }

  // Computes the units of this block. Kernel: compute(args, place) computes the outputs of one unit.
  template <class Kernel>
  LAMINA_DEVICE static void run(const typename Kernel::Args& args) {
    const uint32_t stride = static_cast<uint32_t>(dev::grid_size().x);
    for (uint32_t unit = dev::block_index().x; unit < args.units.count; unit += stride) {
      Kernel::compute(args, find_place(args, unit));
      if (args.units.count - unit > stride) dev::block_sync();  // all warps have read the ring
    }
  }

  // args: all members but the units. Kernel: kSmemBytes, and Args with p, split, units and row_bytes() between rows of a.
  template <class Kernel>
  static Status launch(const char* op, typename Kernel::Args args, int max_blocks, void* stream) {
    const Problem& p = args.p.problem;
    const int64_t blocks_m = ceil_div(p.m, kShape.block_m);
    const int64_t blocks_n = ceil_div(p.n, kShape.block_n);
    const std::optional<int64_t> units = checked_product(blocks_m, blocks_n, args.split.count);
    if (!units || *units > INT_MAX)
      return Status::error(op, ": m = ", p.m, ", n = ", p.n, ": more than ", INT_MAX, " tiles of ",
                           kShape.block_m, " x ", kShape.block_n);
    args.units = {static_cast<int>(blocks_m), static_cast<int>(blocks_n),
                  static_cast<int>(int4::tiles_k(p.k)), static_cast<uint32_t>(*units)};
    return dev::launch<Kernel>(
        {{static_cast<int>(std::min<int64_t>(*units, max_blocks)), 1, 1}, Kernel::kSmemBytes},
        stream, args);
  }
};

}  // namespace lamina::gemm
