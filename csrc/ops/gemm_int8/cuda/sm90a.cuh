// gemm_int8 / sm90a:   out[i,j] = epilogue(sum_p a[i,p] * w[j,p]), epilogue: gemm/epilogue_maths.h
//
// Algorithm  persistent blocks walk over tiles of kTokens x kFeatures outputs. One producer thread issues the TMA
//            loads of the operands; one or two consumer warpgroups multiply. Weights are the 64 rows of wgmma and
//            tokens its n, so a few tokens waste no rows. The blocks of a cluster have the same tokens; each loads a
//            part for all. Sums are exact integers, so the result does not depend on the tile or on the split of k.
// Layouts    a [m,k] row-major.  w: layout/int8_tile.h, the layout of all kernels.  out [m,n] row-major.
// Data path  gmem -TMA-> smem ring -> a: wgmma's shared operand; w: 8-byte loads -> its register operand -> s32;
//            then smem box -TMA-> out (gemm/cuda/store_tma.cuh) or, where TMA cannot store out, smem rows -> out
//            (gemm/cuda/store_rows.cuh)
// Features   lanes with lane / 4 == q hold two neighbouring features of a warp's 16 (lane_pair), rows q and q + 8 of
//            wgmma
// Budget     regs <= 168; 0 spills; 0 bank conflicts (layout/swizzle.h)
//            requires SASS: IGMMA, UTMALDG, UTMASTG
// Requires   rows of a that start at multiples of 16 bytes: checked in gemm/cuda/plan.cc
// Source     own; warp roles and ring as in DeepGEMM and CUTLASS's persistent kernels. Reference:
//            tests/reference/gemm.py
#pragma once

#include "block/cluster.cuh"
#include "block/ring.cuh"
#include "block/tile_order.cuh"
#include "device/device.h"
#include "device/registers.h"
#include "gemm/cuda/epilogue.cuh"
#include "gemm/cuda/integer_scaler.cuh"
#include "gemm/cuda/kernel.h"
#include "gemm/cuda/store_rows.cuh"
#include "gemm/cuda/store_tma.cuh"
#include "gemm/cuda/tma_tokens.h"
#include "layout/int8_tile.h"
#include "layout/matrix_descriptor.h"
#include "layout/swizzle.h"
#include "ops/gemm_int8/cuda/sm90a_groups.cuh"

namespace lamina::gemm_int8 {

struct Sm90aConfig {
  int tokens;      // tokens of a block's tile: the n of its wgmmas
  int warpgroups;  // consumer warpgroups, 64 features each
  int cluster;     // blocks that share tokens
  int stages;
  bool is_grouped = false;  // scales along k: sm90a_groups.cuh
};

template <Sm90aConfig kConfig>
struct Sm90a {
  static constexpr const char* kName = "gemm_int8_sm90a";
  static constexpr int kWarpgroupThreads = 128, kWarpgroupWarps = 4;
  static constexpr int kConsumerThreads = kConfig.warpgroups * kWarpgroupThreads;
  static constexpr int kThreads = kConsumerThreads + kWarpgroupThreads;
  static constexpr int kMinBlocks = 1;

  static constexpr int kTokens = kConfig.tokens, kTokenGroup = 8;
  static constexpr int kWgmmaRows = 64, kWgmmaK = 32;
  static constexpr int kFeatures = kConfig.warpgroups * kWgmmaRows;
  static constexpr int kCluster = kConfig.cluster;

  // A ring stage: tiles of w, [feature / 16][k / 64], then rows of a, one swizzle atom wide.
  static constexpr int kStepK = 128, kStepTiles = kStepK / int8_tile::kTileK;
  static constexpr int kProducts = kStepK / kWgmmaK;
  static constexpr int kLineBytes = 128;  // a line of w for TMA, and the span of both swizzles
  static constexpr int kTileLines = int8_tile::kTileBytes / kLineBytes;
  static constexpr int kGroupBytes = int8_tile::kTileN * int8_tile::kGroupK;  // 4 k
  static constexpr int kTileRunBytes = kStepTiles * int8_tile::kTileBytes;    // 16 features
  static constexpr int kBytesW = kFeatures / int8_tile::kTileN * kTileRunBytes;
  static constexpr int kBytesA = kTokens * kStepK;
  static constexpr int kPartTokens = kTokens / kCluster;  // tokens that a block fetches
  static constexpr int kStageBytes = kBytesW + kBytesA;
  static constexpr int kSwizzleGroupBytes = 8 * kStepK;  // eight rows of a: the descriptor's stride
  static_assert(kStepK == kLineBytes);
  static_assert(kBytesW % kSwizzleGroupBytes == 0 && kPartTokens % kTokenGroup == 0);

  struct Barriers {
    dev::MBarrier full[kConfig.stages], empty[kConfig.stages];
  };
  static constexpr int kRingBytes = kConfig.stages * kStageBytes;
  // Behind the ring: the rows of each warp (StoreRows) or the boxes of each warpgroup (StoreTma).
  using Scaler = std::conditional_t<kConfig.is_grouped, Unscaled, IntegerScaler>;
  using Rows = StoreRows<kTokens, Scaler>;
  using Boxes = StoreTma<kTokens, Scaler>;
  static constexpr int kOutBytes = kConfig.warpgroups * kWarpgroupWarps * Rows::kBytes;
  static_assert(kWarpgroupWarps * Rows::kBytes == Boxes::kBytes);
  static_assert(kRingBytes % swizzle_alignment(Swizzle::k128) == 0);
  // With scales along k: the scales of each stage, and the total of the earlier k chunks.
  static constexpr bool kIsGrouped = kConfig.is_grouped;
  using Scales = Sm90aScales<kFeatures, kTokens>;
  static constexpr int kScalesBytes =
      kIsGrouped ? kConfig.stages * static_cast<int>(sizeof(Scales)) : 0;
  static constexpr int kTotalBytes = kIsGrouped ? kFeatures * kTokens * 4 : 0;
  static constexpr int kBarriersAt = kRingBytes + kOutBytes + kScalesBytes + kTotalBytes;
  static constexpr int kSmemBytes = kBarriersAt + static_cast<int>(sizeof(Barriers));
  static_assert(!kIsGrouped || kStepK == kScaleGroup);
  static_assert(kSmemBytes <= 227 * 1024);

  // The producer hands registers to two consumer warpgroups; a single one has as many as it can use.
  static constexpr bool kMovesRegisters = kConfig.warpgroups > 1;
  // The cycles of scaling along k: with one warpgroup nothing hides them, with two the products of the other hide half.
  static constexpr int kScaleCycles = 60 + (kConfig.warpgroups > 1 ? kTokens : 2 * kTokens);
  static constexpr int kStepCycles = 20 + (kConfig.is_grouped ? kScaleCycles : 0);
  static constexpr int kProducerRegisters = kConfig.is_grouped ? 72 : 40;
  static constexpr int kMathRegisters = kConfig.is_grouped ? 216 : 232;
  static_assert(!kMovesRegisters || dev::owns_registers(kConsumerThreads, kMathRegisters,
                                                        kWarpgroupThreads, kProducerRegisters));

  struct Args {
    dev::TensorMap map_a, map_w, map_out;
    Params p;
    Split split;
    bool stores_by_tma;  // whether map_out is valid
  };

  using Tile = OutputTile;
  using Schedule = TileOrder<kTokens, kFeatures, kCluster>;
  using Cursor = RingCursor<kConfig.stages>;

  static constexpr Schedule schedule_of(const Args& args) {
    const int64_t steps = ceil_div(int8_tile::tiles_k(args.p.problem.k), kStepTiles);
    return {args.p.problem.m, args.p.problem.n, steps, args.split.count, args.split.steps};
  }

  LAMINA_DEVICE static std::byte* stage_at(int stage) {
    return dev::dynamic_smem() + stage * kStageBytes;
  }
  LAMINA_DEVICE static Barriers& barriers() {
    return *reinterpret_cast<Barriers*>(dev::dynamic_smem() + kBarriersAt);
  }
  LAMINA_DEVICE static Scales& scales_at(int stage) {
    return reinterpret_cast<Scales*>(dev::dynamic_smem() + kRingBytes + kOutBytes)[stage];
  }
  LAMINA_DEVICE static dev::U32x4* total() {
    return reinterpret_cast<dev::U32x4*>(dev::dynamic_smem() + kRingBytes + kOutBytes +
                                         kScalesBytes);
  }

  LAMINA_DEVICE static void produce(const Args& args, const Schedule& schedule) {
    Barriers& bars = barriers();
    Cursor cursor;
    for (int64_t unit = Schedule::first(); unit < schedule.units; unit += Schedule::stride()) {
      const Tile tile = schedule.tile(unit);
      for (int s = 0; s < tile.steps; ++s, cursor.advance()) {
        dev::MBarrier* const full = &bars.full[cursor.stage];
        // The ring starts empty: the phase before the first counts as done.
        dev::mbarrier_wait(&bars.empty[cursor.stage], cursor.parity ^ 1);
        dev::mbarrier_arrive_expect_tx(full, kStageBytes);
        const int64_t step = tile.first_step + s;
        dev::tma_load<3>(stage_at(cursor.stage), &args.map_w, full,
                         {0, static_cast<int32_t>(step * kStepTiles * kTileLines),
                          static_cast<int32_t>(tile.n0 / int8_tile::kTileN)});
        const int part = Schedule::rank() * kPartTokens;
        std::byte* const tokens = stage_at(cursor.stage) + kBytesW + part * kStepK;
        const int32_t at[2] = {static_cast<int32_t>(step * kStepK),
                               static_cast<int32_t>(tile.m0 + part)};
        load_for_cluster<kCluster>(tokens, &args.map_a, full, at);
      }
    }
  }

  using Sums = int32_t[kTokens / 2];

  // The pair of a warp's 16 features that the lanes with lane / 4 == q hold. Sixteen lanes load together: q 0..3 or q
  // 4..7, in all four k groups, from two lines of w. With this choice of pairs and the swizzle of w they hit
  // different banks.
  LAMINA_DEVICE static int lane_pair(int q) { return (q & 1) | (q & 2) << 1 | (q & 4) >> 1; }

  // Loads the weights of product h of a stage, wgmma's register operand a.
  LAMINA_DEVICE static void load_weights(const std::byte* stage, int warp, int h,
                                         uint32_t (&weights)[4]) {
    const int g = dev::lane() % 4, pair = lane_pair(dev::lane() / 4);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const int row = h * 8 + v * 4 + g;
      const uint32_t at =
          static_cast<uint32_t>(warp * kTileRunBytes + row * kGroupBytes + pair * 8);
      const dev::U32x2 two = dev::load_shared(
          reinterpret_cast<const dev::U32x2*>(stage + swizzled(Swizzle::k128, at)));
      weights[2 * v] = two.x[0];
      weights[2 * v + 1] = two.x[1];
    }
  }

  LAMINA_DEVICE static void release(int stage) {
    arrive_in_cluster<kCluster>(&barriers().empty[stage]);
  }

  // The products of a tile. Each product is a wgmma group of its own. Each of the kProducts products of a step has
  // its own registers, so a product waits only for its predecessor one step before, while kProducts - 1 others are in
  // flight.
  LAMINA_DEVICE static void multiply(const Tile& tile, int warp, Cursor& cursor, Sums& sums) {
    uint32_t weights[kProducts][4];
    int before = 0;  // the stage of the step before
    dev::wgmma_fence_registers(sums);
    for (int s = 0; s < tile.steps; ++s) {
      const std::byte* const stage = stage_at(cursor.stage);
      const uint32_t tokens = dev::smem_address(stage + kBytesW);
      dev::mbarrier_wait(&barriers().full[cursor.stage], cursor.parity);
#pragma unroll
      for (int h = 0; h < kProducts; ++h) {
        dev::wgmma_wait<kProducts - 1>();
        load_weights(stage, warp, h, weights[h]);
        dev::wgmma_fence();
        dev::wgmma_m64k32_s8<kTokens>(
            sums, weights[h],
            dev::matrix_descriptor(tokens + static_cast<uint32_t>(h * kWgmmaK), 0,
                                   kSwizzleGroupBytes, Swizzle::k128),
            true);
        dev::wgmma_commit();
      }
      if (s > 0) release(before);  // its last product was waited for above
      before = cursor.stage;
      cursor.advance();
    }
    dev::wgmma_wait<0>();
    dev::wgmma_fence_registers(sums);
    if (tile.steps > 0) release(before);
  }

  // Stores by TMA and stores by rows have separate loops: one loop with both would need too many registers.
  template <bool kStoresByTma>
  LAMINA_DEVICE static void consume(const Args& args, const Schedule& schedule, int warp) {
    Cursor cursor;
    int box = 0;
    for (int64_t unit = Schedule::first(); unit < schedule.units; unit += Schedule::stride()) {
      const Tile tile = schedule.tile(unit);
      Sums sums = {};
      if constexpr (kIsGrouped) {
        Sm90aGroups<Sm90a>::template consume<kStoresByTma>(args, tile, warp, cursor, sums, box);
      } else {
        multiply(tile, warp, cursor, sums);
        if constexpr (kStoresByTma) {
          send(args, tile, warp, sums, box);
        } else if (args.split.count == 1) {
          store<false>(args, tile, warp, 0, sums);
        } else {
          store<true>(args, tile, warp, tile.split, sums);
        }
      }
    }
    if constexpr (kStoresByTma) Boxes::finish();
  }

  // Passes the sums through the epilogue and stores them with TMA.
  template <class Acc>
  LAMINA_DEVICE static void send(const Args& args, const Tile& tile, int warp,
                                 const Acc (&sums)[kTokens / 2], int& box) {
    Boxes::store(
        args.p, args.map_out,
        {tile.m0, tile.n0, dev::dynamic_smem() + kRingBytes, warp, lane_pair(dev::lane() / 4)},
        sums, box);
  }

  // Stores the sums by rows: to the partial sum (kToPartial), or through the epilogue to out.
  template <bool kToPartial, class Acc>
  LAMINA_DEVICE static void store(const Args& args, const Tile& tile, int warp, int64_t partial,
                                  const Acc (&sums)[kTokens / 2]) {
    Rows::template store<kToPartial>(
        args.p, args.split, {tile.m0, tile.n0 + warp * int8_tile::kTileN, partial},
        dev::dynamic_smem() + kRingBytes + warp * Rows::kBytes, lane_pair(dev::lane() / 4), sums);
  }

  LAMINA_DEVICE static void run(const Args& args) {
    const Schedule schedule = schedule_of(args);
    if (dev::thread_index() == 0) {
      if (schedule.all_steps > 0) {
        dev::tma_prefetch(&args.map_w);
        dev::tma_prefetch(&args.map_a);
      }
      if (args.stores_by_tma) dev::tma_prefetch(&args.map_out);
      for (int s = 0; s < kConfig.stages; ++s) {
        dev::mbarrier_init(&barriers().full[s], kIsGrouped ? 2 : 1);
        dev::mbarrier_init(&barriers().empty[s], kCluster * kConfig.warpgroups * kWarpgroupWarps);
      }
      dev::fence_mbarrier_init();
    }
    sync_cluster<kCluster>();
    if (args.split.lets_start()) dev::launch_dependents();
    const int warp =
        dev::shuffle(dev::warp(), 0);  // tells the compiler that the warp index is uniform
    if (warp < kConfig.warpgroups * kWarpgroupWarps) {
      if constexpr (kMovesRegisters) dev::raise_registers<kMathRegisters>();
      if (args.stores_by_tma) {
        consume<true>(args, schedule, warp);
      } else {
        consume<false>(args, schedule, warp);
      }
    } else {
      if constexpr (kMovesRegisters) dev::lower_registers<kProducerRegisters>();
      if (dev::thread_index() == kConsumerThreads) produce(args, schedule);
      if constexpr (kIsGrouped)
        if (warp == kConfig.warpgroups * kWarpgroupWarps + 1)
          Sm90aGroups<Sm90a>::produce(args, schedule);
    }
    dev::warp_sync();
    if constexpr (kCluster > 1) sync_cluster<kCluster>();  // others still write here
  }

  static Status launch(const Params& params, const Split& split, int max_blocks, void* stream) {
    const Problem& problem = params.problem;
    const int64_t tiles_k = int8_tile::tiles_k(problem.k), tiles_n = int8_tile::tiles_n(problem.n);
    Args args{{}, {}, {}, params, split, Boxes::can_store(params, split)};
    if (args.stores_by_tma)
      if (Status status = Boxes::make_map(params, args.map_out); !status.is_ok()) return status;
    if (problem.k == 0) return start(args, max_blocks, stream);
    if (Status status = dev::make_tensor_map(
            {params.w,
             3,
             1,
             {kLineBytes, tiles_k * kTileLines, tiles_n},
             {0, kLineBytes, tiles_k * int8_tile::kTileBytes},
             {kLineBytes, kStepTiles * kTileLines, kFeatures / int8_tile::kTileN},
             Swizzle::k128},
            args.map_w);
        !status.is_ok())
      return status;
    if (Status status = make_token_map({params.a, 1, problem.k, problem.m, params.a_stride}, kStepK,
                                       kPartTokens, Swizzle::k128, args.map_a);
        !status.is_ok())
      return status;
    return start(args, max_blocks, stream);
  }

  static Status start(const Args& args, int max_blocks, void* stream) {
    const dev::LaunchShape shape{
        {schedule_of(args).blocks(max_blocks), 1, 1}, kSmemBytes, kCluster};
    return dev::launch<Sm90a>(shape, stream, args);
  }
};

template <Sm90aConfig kConfig>
CudaKernel sm90a_kernel(const char* name) {
  using Kernel = Sm90a<kConfig>;
  return {.name = name,
          .arch = 90,
          .tile_m = Kernel::kTokens,
          .tile_n = Kernel::kFeatures,
          .step_k = Kernel::kStepK,
          .blocks_per_sm = 1,
          .smem_bytes = Kernel::kSmemBytes,
          .cluster = Kernel::kCluster,
          .a_alignment = 16,
          .macs_per_cycle = 4096,
          .step_cycles = Kernel::kStepCycles,
          .is_persistent = true,
          .launch = &launch_as<Params, &Kernel::launch>};
}

}  // namespace lamina::gemm_int8
