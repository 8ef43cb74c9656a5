// Barriers of a block and of a warp, and the fence between blocks. Emulator: emu/sync.h
#pragma once

#include "device/types.h"

namespace lamina::dev {

// bar.sync 0;                                                             PTX ISA 1.0, sm_10
// Waits for all threads of the block; their earlier writes are then visible to all of them.
LAMINA_DEVICE void block_sync() { __syncthreads(); }

// bar.sync id, threads;                                                   PTX ISA 2.0, sm_20
// Waits until `threads` threads of the block, in whole warps, have synced or arrived at barrier `id`. The barrier is
// then ready for its next use. id is 1 to 15; block_sync uses 0. Warps call it with all lanes.
LAMINA_DEVICE void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.arrive id, threads;                                                 PTX ISA 2.0, sm_20
// Like barrier_sync, but does not wait: a producer says that its writes are done.
LAMINA_DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// bar.warp.sync mask;                                                     PTX ISA 6.0, sm_30
// Waits for the lanes of `mask`, which include the caller, and orders their memory accesses.
LAMINA_DEVICE void warp_sync(uint32_t mask = kFullWarp) {
  asm volatile("bar.warp.sync %0;" ::"r"(mask) : "memory");
}

// fence.acq_rel.gpu;                                                      PTX ISA 6.0, sm_70
// Orders this thread's earlier accesses before its later ones, as seen by any block. Cheaper than __threadfence(),
// which is fence.sc.
LAMINA_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

}  // namespace lamina::dev
