// Copies that one thread starts and hardware carries out: boxes of tensors and runs of bytes, between global and
// shared memory. They belong to the async proxy: the earlier writes of threads must be fenced with
// fence_proxy_async(). Emulator: emu/tma.h
#pragma once

#include "device/ptx/copy.cuh"
#include "device/ptx/index.cuh"
#include "device/types.h"

namespace lamina::dev {
namespace detail {

// createpolicy.fractional.L2::evict_first.b64 d, 1.0;                     PTX ISA 7.4, sm_80
LAMINA_DEVICE uint64_t evict_first_policy() {
  uint64_t d;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(d));
  return d;
}

// All forms have the same operands: 0 shared memory, 1 map, 2 barrier, 3 ranks, 4 policy, 5 to 8
// coordinates. An operand that a form does not name costs nothing.
#define LAMINA_TMA(text)                                                                      \
  asm volatile(text ";" ::"r"(smem), "l"(map), "r"(full), "h"(ranks), "l"(policy), "r"(c[0]), \
               "r"(c[1]), "r"(c[2]), "r"(c[3])                                                \
               : "memory")
#define LAMINA_TMA_LOAD(rank, at, form, tail)                                                    \
  LAMINA_TMA("cp.async.bulk.tensor." rank                                                        \
             ".shared::cluster.global.tile.mbarrier::complete_tx::bytes" form " [%0], [%1, {" at \
             "}], [%2]" tail)
#define LAMINA_TMA_STORE(rank, at)                                                        \
  LAMINA_TMA("cp.async.bulk.tensor." rank ".global.shared::cta.tile.bulk_group [%1, {" at \
             "}], [%0]")
#define LAMINA_EACH_RANK(what, ...)                          \
  if constexpr (kRank == 2) {                                \
    what("2d", "%5, %6" __VA_OPT__(, ) __VA_ARGS__);         \
  } else if constexpr (kRank == 3) {                         \
    what("3d", "%5, %6, %7" __VA_OPT__(, ) __VA_ARGS__);     \
  } else {                                                   \
    what("4d", "%5, %6, %7, %8" __VA_OPT__(, ) __VA_ARGS__); \
  }

template <int kRank>
struct Coordinates {
  static_assert(kRank >= 2 && kRank <= kMaxTensorRank);
  int32_t c[kMaxTensorRank] = {};
  LAMINA_DEVICE explicit Coordinates(const int32_t (&at)[kRank]) {
    for (int i = 0; i < kRank; ++i) c[i] = at[i];
  }
};

template <int kRank, bool kMulticast, Cache kCache>
LAMINA_DEVICE void tma_load(void* to, const TensorMap* map, MBarrier* barrier,
                            const int32_t (&at)[kRank], uint16_t ranks) {
  const auto [c] = Coordinates<kRank>(at);
  const uint32_t smem = dev::smem_address(to), full = dev::smem_address(barrier);
  if constexpr (kCache == Cache::kStream) {
    const uint64_t policy = evict_first_policy();
    if constexpr (kMulticast) {
      LAMINA_EACH_RANK(LAMINA_TMA_LOAD, ".multicast::cluster.L2::cache_hint", ", %3, %4")
    } else {
      LAMINA_EACH_RANK(LAMINA_TMA_LOAD, ".L2::cache_hint", ", %4")
    }
  } else {
    const uint64_t policy = 0;
    if constexpr (kMulticast) {
      LAMINA_EACH_RANK(LAMINA_TMA_LOAD, ".multicast::cluster", ", %3")
    } else {
      LAMINA_EACH_RANK(LAMINA_TMA_LOAD, "", "")
    }
  }
}

template <int kRank>
LAMINA_DEVICE void tma_store(const TensorMap* map, const void* from, const int32_t (&at)[kRank]) {
  const auto [c] = Coordinates<kRank>(at);
  const uint32_t smem = dev::smem_address(from), full = 0;
  const uint16_t ranks = 0;
  const uint64_t policy = 0;
  LAMINA_EACH_RANK(LAMINA_TMA_STORE)
}

#undef LAMINA_EACH_RANK
#undef LAMINA_TMA_STORE
#undef LAMINA_TMA_LOAD
#undef LAMINA_TMA

}  // namespace detail

// cp.async.bulk.tensor.{2,3,4}d.shared::cluster.global.tile
//   .mbarrier::complete_tx::bytes{.L2::cache_hint} [smem], [map, at], [full]{, policy};
//                                                                         PTX ISA 8.0, sm_90
// Starts a copy of the map's box with its first element at `at`. The box may reach past any edge of the tensor;
// elements there are zeros. Counts the bytes of the whole box at `full`. smem is a multiple of 128 and of
// swizzle_alignment(); the map is a part of the kernel's Args. kStream asks for evict-first in L2.
template <int kRank, Cache kCache = Cache::kDefault>
LAMINA_DEVICE void tma_load(void* smem, const TensorMap* map, MBarrier* full,
                            const int32_t (&at)[kRank]) {
  detail::tma_load<kRank, false, kCache>(smem, map, full, at, 0);
}

// cp.async.bulk.tensor.{2,3,4}d.shared::cluster.global.tile
//   .mbarrier::complete_tx::bytes.multicast::cluster{.L2::cache_hint} [smem], [map, at], [full],
//   ranks{, policy};                                                      PTX ISA 8.0, sm_90a
// Like tma_load, but copies to the same place of each block of the cluster whose bit is set in ranks. Each copy
// counts at the barrier in the same place of its block.
template <int kRank, Cache kCache = Cache::kDefault>
LAMINA_DEVICE void tma_load_multicast(void* smem, const TensorMap* map, MBarrier* full,
                                      const int32_t (&at)[kRank], uint16_t ranks) {
  detail::tma_load<kRank, true, kCache>(smem, map, full, at, ranks);
}

// cp.async.bulk.tensor.{2,3,4}d.global.shared::cta.tile.bulk_group [map, at], [smem];
//                                                                         PTX ISA 8.0, sm_90
// Starts a copy of the part of the box that lies in the tensor. The copy belongs to the next bulk_commit().
template <int kRank>
LAMINA_DEVICE void tma_store(const TensorMap* map, const void* smem, const int32_t (&at)[kRank]) {
  detail::tma_store<kRank>(map, smem, at);
}

// cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [smem], [gmem], bytes, [full];
//                                                                         PTX ISA 8.0, sm_90
// Addresses and bytes are multiples of 16.
LAMINA_DEVICE void bulk_load(void* smem, const void* gmem, int bytes, MBarrier* full) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
      "[%3];" ::"r"(smem_address(smem)),
      "l"(detail::gmem_address(gmem)), "r"(bytes), "r"(smem_address(full))
      : "memory");
}

// cp.async.bulk.global.shared::cta.bulk_group [gmem], [smem], bytes;      PTX ISA 8.0, sm_90
// Addresses and bytes are multiples of 16. The copy belongs to the next bulk_commit().
LAMINA_DEVICE void bulk_store(void* gmem, const void* smem, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   detail::gmem_address(gmem)),
               "r"(smem_address(smem)), "r"(bytes)
               : "memory");
}

// cp.async.bulk.commit_group;                                             PTX ISA 8.0, sm_90
// Makes a group of this thread's stores since the last commit; the group may be empty.
LAMINA_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// cp.async.bulk.wait_group kPending;                                      PTX ISA 8.0, sm_90
// Waits for all but the kPending newest groups of this thread. Their data are then in global memory, visible to this
// thread.
template <int kPending>
LAMINA_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// cp.async.bulk.wait_group.read kPending;                                 PTX ISA 8.0, sm_90
// Like bulk_wait, but waits only until the sources have been read and may be overwritten.
template <int kPending>
LAMINA_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// prefetch.tensormap [map];                                               PTX ISA 8.0, sm_90
LAMINA_DEVICE void tma_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace lamina::dev
