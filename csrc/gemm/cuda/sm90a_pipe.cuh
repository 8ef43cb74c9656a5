// The pipeline of the products with int4 or 2:4 weights on sm_90a: persistent blocks whose producer warps fill a ring of stages for two
// consumer warpgroups, which multiply.
//
// Algorithm  one producer thread issues TMA loads of weights and rows of a. Three copy warps beside it copy scales
//            and zero points of groups, and rows of a that TMA cannot load. Both arrive at the barrier `full` of a
//            stage; the consumer warps release the stage through its barrier `empty`
// Layouts    a stage: for each 64 k the rows of a, one swizzle atom wide; tiles of w [feature / 16][k / 64]; group
//            operands
#pragma once

#include <type_traits>

#include "base/int_math.h"
#include "block/cluster.cuh"
#include "block/ring.cuh"
#include "block/row_copy.cuh"
#include "block/tile_order.cuh"
#include "device/device.h"
#include "device/registers.h"
#include "gemm/cuda/k_chunk.cuh"
#include "gemm/cuda/kernel.h"
#include "gemm/cuda/store_rows.cuh"
#include "gemm/cuda/tma_tokens.h"
#include "layout/int4.h"
#include "layout/matrix_descriptor.h"
#include "layout/swizzle.h"
#include "quant/gather.cuh"

namespace lamina::gemm {

struct Sm90aShape {
  int tokens;       // tokens of a block's tile: the n of its wgmmas
  int cluster;      // blocks that share tokens
  int stage_tiles;  // tiles of 64 k in a ring stage
  int stages;
  int a_bytes;         // bytes of one activation
  int group_bytes;     // group operands in a stage
  int warp_bytes = 0;  // shared memory of each consumer warp behind its total of k chunks
  int tile_bytes = int4::kTileBytes;
  bool has_chunks = true;  // sums end with k chunks
};

// The Copies of a kernel whose copy warps have nothing to copy.
struct NoCopies {};

template <Sm90aShape kShape>
struct Sm90aPipe {
  // Two consumer warpgroups; one producer warpgroup, of a TMA warp and three copy warps.
  static constexpr int kMathWarps = 8, kCopyWarps = 3;
  static constexpr int kMathThreads = kMathWarps * dev::kWarpLanes;
  static constexpr int kCopyThreads = kCopyWarps * dev::kWarpLanes;
  static constexpr int kThreads = kMathThreads + dev::kWarpLanes + kCopyThreads;

  static constexpr int kTokens = kShape.tokens, kFeatures = kMathWarps * int4::kTileN;
  static constexpr int kCluster = kShape.cluster;
  static constexpr int kPartTokens = kTokens / kCluster;  // tokens that a block fetches

  static constexpr int kStageTiles = kShape.stage_tiles;
  static constexpr int kRowBytes = int4::kTileK * kShape.a_bytes;
  static constexpr Swizzle kSwizzle = kRowBytes == 128 ? Swizzle::k128 : Swizzle::k64;
  static constexpr int kSwizzleGroupBytes =
      8 * kRowBytes;  // eight rows of a: the descriptor's stride
  static constexpr int kTileBytesA = kTokens * kRowBytes;
  static constexpr int kBytesA = kStageTiles * kTileBytesA;
  static constexpr int kBytesW = kMathWarps * kStageTiles * kShape.tile_bytes;
  static constexpr int kGroupsAt = kBytesA + kBytesW, kStageBytes = kGroupsAt + kShape.group_bytes;
  static_assert(kRowBytes == swizzle_bytes(kSwizzle) && kPartTokens % 8 == 0);
  static_assert(kStageBytes % swizzle_alignment(kSwizzle) == 0);
  static_assert(kTileBytesA % swizzle_alignment(kSwizzle) == 0);

  // TMA sees a tile of w as equal lines, of 256 words at most.
  static constexpr int kTileLines = ceil_div(kShape.tile_bytes, 1024);
  static constexpr int kLineWords = kShape.tile_bytes / kTileLines / 4;
  static_assert(kLineWords * 4 * kTileLines == kShape.tile_bytes && kLineWords % 4 == 0);

  // Behind the ring lies each consumer warp's total of k chunks. The warp's rows on the way out replace the total.
  static constexpr int kTotalBytes =
      kShape.has_chunks ? kTokens / 8 * dev::kWarpLanes * 16 : StoreRows<kTokens, Unscaled>::kBytes;
  static constexpr int kWarpBytes = kTotalBytes + kShape.warp_bytes;

  struct Barriers {
    dev::MBarrier full[kShape.stages], empty[kShape.stages];
  };
  static constexpr int kRingBytes = kShape.stages * kStageBytes;
  static constexpr int kBarriersAt = kRingBytes + kMathWarps * kWarpBytes;
  static constexpr int kSmemBytes = kBarriersAt + static_cast<int>(sizeof(Barriers));
  static_assert(kSmemBytes <= 227 * 1024 && kBarriersAt % 16 == 0);

  // The copy warps arrive at a stage only kAhead stages later, when its copies have landed. A consumer releases a
  // stage while it multiplies the next one. kAhead + 2 stages are thus in use at once, and one more keeps either side
  // from waiting.
  static constexpr int kAhead = 2;
  static_assert(kAhead + 3 <= kShape.stages);

  // The producer warpgroup hands registers to the consumer warpgroups. Where these need no more registers, the
  // instruction still tells the compiler that the warps have converged, so that it keeps descriptors in uniform
  // registers.
  static constexpr int kProducerRegisters = 72, kMathRegisters = 216;
  static_assert(dev::owns_registers(kMathThreads, kMathRegisters, kThreads - kMathThreads,
                                    kProducerRegisters));

  // A step of a tile is 64 k.
  using Tile = OutputTile;
  using Schedule = TileOrder<kTokens, kFeatures, kCluster>;
  using Cursor = RingCursor<kShape.stages>;

  static constexpr Schedule schedule_of(const Problem& p, const Split& split) {
    return {p.m, p.n, int4::tiles_k(p.k), split.count, split.steps};
  }

  LAMINA_DEVICE static std::byte* stage_at(int stage) {
    return dev::dynamic_smem() + stage * kStageBytes;
  }
  LAMINA_DEVICE static Barriers& barriers() {
    return *reinterpret_cast<Barriers*>(dev::dynamic_smem() + kBarriersAt);
  }
  LAMINA_DEVICE static std::byte* warp_at(int warp) {
    return dev::dynamic_smem() + kRingBytes + warp * kWarpBytes;
  }

  // Consumer warps: wait for a full stage, then release it.
  LAMINA_DEVICE static void wait_full(const Cursor& cursor) {
    dev::mbarrier_wait(&barriers().full[cursor.stage], cursor.parity);
  }
  LAMINA_DEVICE static void release(int stage) {
    arrive_in_cluster<kCluster>(&barriers().empty[stage]);
  }
  LAMINA_DEVICE static const std::byte* tile_at(const std::byte* stage, int warp, int tile) {
    return stage + kBytesA + (warp * kStageTiles + tile) * kShape.tile_bytes;
  }
  LAMINA_DEVICE static dev::U32x4 load_codes(const std::byte* stage, int warp, int tile) {
    return dev::load_shared(
        reinterpret_cast<const dev::U32x4*>(tile_at(stage, warp, tile) + dev::lane() * 16));
  }

  // Ends each k chunk of a warp after `steps` steps.
  LAMINA_DEVICE static auto k_chunk_end(int warp, float* sums, int steps) {
    return KChunkEnd<kTokens / 8, dev::kWarpLanes>{
        sums, reinterpret_cast<dev::U32x4*>(warp_at(warp)) + dev::lane(), steps};
  }

  // Stores a warp's sums to the partial sum of a k chunk (kToPartial), or through the epilogue to out.
  template <class Scaler, bool kToPartial>
  LAMINA_DEVICE static void store(const auto& args, const Tile& tile, int warp, int64_t partial,
                                  const auto& sums) {
    using Rows = StoreRows<kTokens, Scaler>;
    static_assert(Rows::kBytes <= kTotalBytes);
    Rows::template store<kToPartial>(args.p, args.split,
                                     {tile.m0, tile.n0 + warp * int4::kTileN, partial},
                                     warp_at(warp), dev::lane() / 4, sums);
  }

  // The descriptor of the rows of a of one tile of 64 k: wgmma's operand b.
  LAMINA_DEVICE static uint64_t tokens_of(const std::byte* stage, int tile) {
    return dev::matrix_descriptor(dev::smem_address(stage + tile * kTileBytesA), 0,
                                  kSwizzleGroupBytes, kSwizzle);
  }

  // Calls body(tile, the stage's first step, cursor) for the stages of this block's tiles until body returns false.
  LAMINA_DEVICE static void for_stages(const Schedule& schedule, const auto& body) {
    Cursor cursor;
    for (int64_t unit = Schedule::first(); unit < schedule.units; unit += Schedule::stride()) {
      const Tile tile = schedule.tile(unit);
      for (int s = 0; s < tile.steps; s += kStageTiles, cursor.advance())
        if (!body(tile, static_cast<int>(tile.first_step) + s, cursor)) return;
    }
  }

  // The producer thread, which issues the TMA loads. Args: map_a, map_w, copies_a(), overlaps().
  LAMINA_DEVICE static void produce(const auto& args, const Schedule& schedule) {
    const int bytes = kBytesW + (args.copies_a() ? 0 : kBytesA);
    const auto load_w = [&](const Tile& tile, int step, const Cursor& cursor) {
      dev::MBarrier* const full = &barriers().full[cursor.stage];
      dev::mbarrier_arrive_expect_tx(full, bytes);
      dev::tma_load<3>(stage_at(cursor.stage) + kBytesA, &args.map_w, full,
                       {0, step * kTileLines, static_cast<int32_t>(tile.n0 / int4::kTileN)});
    };
    // No launch writes weights, so the whole ring of weights is loaded while the launch before is still running.
    int early = 0;
    if (args.overlaps())
      for_stages(schedule, [&](const Tile& tile, int step, const Cursor& cursor) {
        if (early == kShape.stages) return false;
        load_w(tile, step, cursor);
        ++early;
        return true;
      });
    dev::wait_for_previous();
    for_stages(schedule, [&](const Tile& tile, int step, const Cursor& cursor) {
      if (early > 0) {
        --early;
      } else {
        // The ring starts empty: the phase before the first counts as done.
        dev::mbarrier_wait(&barriers().empty[cursor.stage], cursor.parity ^ 1);
        load_w(tile, step, cursor);
      }
      if (args.copies_a()) return true;
      dev::MBarrier* const full = &barriers().full[cursor.stage];
      const int part = Schedule::rank() * kPartTokens;
#pragma unroll
      for (int t = 0; t < kStageTiles; ++t) {
        std::byte* const to = stage_at(cursor.stage) + t * kTileBytesA + part * kRowBytes;
        const int32_t at[2] = {(step + t) * int4::kTileK, static_cast<int32_t>(tile.m0 + part)};
        load_for_cluster<kCluster>(to, &args.map_a, full, at);
      }
      return true;
    });
  }

  // The copy warps; thread: the index among their threads. The copies of a stage are waited for kAhead stages later.
  // Copies: at(args, tile) makes one for a tile; start(args, tile, step, thread, stage) starts the copies of the
  // stage whose first step is `step`.
  template <class Copies>
  LAMINA_DEVICE static void copy(const auto& args, const Schedule& schedule, int thread) {
    Cursor cursor, done;
    int under_way = 0;
    const auto arrive = [&] {
      if (args.copies_a()) dev::fence_proxy_async();  // wgmma reads these rows of a
      arrive_in_cluster<1>(&barriers().full[done.stage]);
      done.advance();
    };
    for (int64_t unit = Schedule::first(); unit < schedule.units; unit += Schedule::stride()) {
      const Tile tile = schedule.tile(unit);
      Copies copies = Copies::at(args, tile);
      for (int s = 0; s < tile.steps; s += kStageTiles, cursor.advance()) {
        dev::mbarrier_wait(&barriers().empty[cursor.stage], cursor.parity ^ 1);
        copies.start(args, tile, static_cast<int>(tile.first_step) + s, thread,
                     stage_at(cursor.stage));
        dev::cp_async_commit();
        if (under_way == kAhead) {
          dev::cp_async_wait<kAhead>();
          arrive();
        } else {
          ++under_way;
        }
      }
    }
    dev::cp_async_wait<0>();
    for (; under_way > 0; --under_way) arrive();
  }

  // Copies or gathers 16-bit rows of a into the stage in place of TMA, with zeros past m and past k. args: a_copy_bytes,
  // as in gemm/cuda/sm80_pipe.cuh.
  LAMINA_DEVICE static void copy_rows(const auto& args, int64_t m0, int step, int thread,
                                      std::byte* stage) {
    constexpr int kChunks = kRowBytes / 16;
    const auto& p = args.p;
    const auto* const base = static_cast<const std::byte*>(p.a);
#pragma unroll 1
    for (int t = thread; t < kStageTiles * kTokens * kChunks; t += kCopyThreads) {
      const int chunk = t % kChunks, row = t / kChunks % kTokens, tile = t / (kChunks * kTokens);
      const int64_t k0 = static_cast<int64_t>(step + tile) * int4::kTileK + chunk * 8;
      const int64_t left = m0 + row < p.problem.m ? p.problem.k - k0 : 0;
      const int valid = left < 0 ? 0 : left > 8 ? 8 : static_cast<int>(left);
      const std::byte* const from = base + (m0 + row) * p.a_stride * 2;
      const auto at = static_cast<uint32_t>(row * kRowBytes + chunk * 16);
      std::byte* const to = stage + tile * kTileBytesA + swizzled(kSwizzle, at);
      if (p.perm.is_given()) {
        gather_chunk(to, reinterpret_cast<const uint16_t*>(from), p.perm, k0, valid);
      } else {
        copy_unaligned(args.a_copy_bytes, to, from + k0 * 2, base, valid * 2);
      }
    }
  }

  // Kernel: has Copies, and consume(args, schedule, warp) for the consumer warps.
  template <class Kernel>
  LAMINA_DEVICE static void run(const typename Kernel::Args& args) {
    constexpr bool kCopies = !std::is_same_v<typename Kernel::Copies, NoCopies>;
    const Schedule schedule = schedule_of(args.p.problem, args.split);
    if (dev::thread_index() == 0) {
      if (schedule.all_steps > 0) {
        dev::tma_prefetch(&args.map_w);
        if (!args.copies_a()) dev::tma_prefetch(&args.map_a);
      }
      for (int s = 0; s < kShape.stages; ++s) {
        dev::mbarrier_init(&barriers().full[s], 1 + (kCopies ? kCopyWarps : 0));
        dev::mbarrier_init(&barriers().empty[s], kCluster * kMathWarps);
      }
      dev::fence_mbarrier_init();
    }
    sync_cluster<kCluster>();
    if (args.split.lets_start()) dev::launch_dependents();
    const int warp =
        dev::shuffle(dev::warp(), 0);  // tells the compiler that the warp index is uniform
    if (warp < kMathWarps) {
      dev::raise_registers<kMathRegisters>();
      dev::wait_for_previous();
      Kernel::consume(args, schedule, warp);
    } else {
      dev::lower_registers<kProducerRegisters>();
      if (dev::thread_index() == kMathThreads) produce(args, schedule);
      if constexpr (kCopies)
        if (warp > kMathWarps) {
          dev::wait_for_previous();
          copy<typename Kernel::Copies>(args, schedule,
                                        dev::thread_index() - kMathThreads - dev::kWarpLanes);
        }
    }
    dev::warp_sync();
    if constexpr (kCluster > 1) sync_cluster<kCluster>();  // others still write here
  }

  // a_columns: elements of a row of a; a_stride: elements between rows.
  template <class Kernel>
  static Status launch(typename Kernel::Args& args, int64_t a_columns, int64_t a_stride,
                       int max_blocks, void* stream) {
    const Problem& p = args.p.problem;
    const dev::LaunchShape shape{{schedule_of(p, args.split).blocks(max_blocks), 1, 1},
                                 kSmemBytes,
                                 kCluster,
                                 args.overlaps()};
    if (p.k == 0) return dev::launch<Kernel>(shape, stream, args);
    const int64_t tiles_k = int4::tiles_k(p.k);
    const dev::TensorMapSpec w{args.p.w,
                               3,
                               4,
                               {kLineWords, tiles_k * kTileLines, int4::tiles_n(p.n)},
                               {0, kLineWords * 4, tiles_k * kShape.tile_bytes},
                               {kLineWords, kStageTiles * kTileLines, kMathWarps}};
    if (Status status = dev::make_tensor_map(w, args.map_w); !status.is_ok()) return status;
    if (args.copies_a()) return dev::launch<Kernel>(shape, stream, args);
    if (Status status = make_token_map({args.p.a, kShape.a_bytes, a_columns, p.m, a_stride},
                                       int4::kTileK, kPartTokens, kSwizzle, args.map_a);
        !status.is_ok())
      return status;
    return dev::launch<Kernel>(shape, stream, args);
  }
};

}  // namespace lamina::gemm
