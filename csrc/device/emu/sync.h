// Emulates ptx/sync.cuh. These functions order memory between threads, and so do mbarriers and flags; shuffles, votes
// and products do not.
#pragma once

#include "device/emu/memory.h"

namespace lamina::dev {

inline void barrier_sync(int id, int threads, emu::Where where = emu::Where::current()) {
  emu::barrier(id, threads, true, "barrier_sync", where);
}
inline void barrier_arrive(int id, int threads, emu::Where where = emu::Where::current()) {
  emu::barrier(id, threads, false, "barrier_arrive", where);
}

inline void block_sync(emu::Where where = emu::Where::current()) {
  emu::barrier(0, emu::kAllThreads, true, "block_sync", where);
}

inline void warp_sync(uint32_t mask = kFullWarp, emu::Where where = emu::Where::current()) {
  emu::meet(mask, "warp_sync", where, nullptr, [&](const auto&) { emu::order_lanes(mask); });
}

inline void fence_device() { emu::fence_global(); }

}  // namespace lamina::dev
