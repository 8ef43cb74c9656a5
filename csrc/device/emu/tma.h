// Emulates ptx/tma.cuh. A load poisons its destination when it is issued, and is delivered only when a thread waits
// for its mbarrier, at a time and in an order that the seed decides. It reads its source at the delivery or, on other
// seeds, when it is issued. A store copies its source, which must not change before a thread has waited for the
// store, and arrives at the last moment.
#pragma once

#include "device/emu/box.h"
#include "device/emu/executor.h"

namespace lamina::dev {
namespace emu {

// ranks: a mask of blocks of the cluster; 0 means this block.
void start_bulk_load(void* smem, const Box& from, MBarrier* full, uint16_t ranks, const char* name,
                     Where where);
void start_bulk_store(const Box& to, const void* smem, const char* name, Where where);
void commit_bulk_stores();
// Finishes all but the newest groups: their sources have been read and, with `writes`, they are in global memory.
void finish_bulk_stores(int pending_groups, bool writes);
Box tensor_box(const TensorMap* map, const int32_t* at, int rank, const char* name, Where where);
Box byte_box(const void* gmem, int bytes, const char* name, Where where);

}  // namespace emu

template <int kRank, Cache kCache = Cache::kDefault>
void tma_load(void* smem, const TensorMap* map, MBarrier* full, const int32_t (&at)[kRank],
              emu::Where where = emu::Where::current()) {
  emu::start_bulk_load(smem, emu::tensor_box(map, at, kRank, "tma_load", where), full, 0,
                       "tma_load", where);
}
template <int kRank, Cache kCache = Cache::kDefault>
void tma_load_multicast(void* smem, const TensorMap* map, MBarrier* full,
                        const int32_t (&at)[kRank], uint16_t ranks,
                        emu::Where where = emu::Where::current()) {
  const char* const name = "tma_load_multicast";
  if (ranks == 0) emu::fail(std::string(name) + ": no ranks", where);
  emu::start_bulk_load(smem, emu::tensor_box(map, at, kRank, name, where), full, ranks, name,
                       where);
}
template <int kRank>
void tma_store(const TensorMap* map, const void* smem, const int32_t (&at)[kRank],
               emu::Where where = emu::Where::current()) {
  emu::start_bulk_store(emu::tensor_box(map, at, kRank, "tma_store", where), smem, "tma_store",
                        where);
}

inline void bulk_load(void* smem, const void* gmem, int bytes, MBarrier* full,
                      emu::Where where = emu::Where::current()) {
  emu::start_bulk_load(smem, emu::byte_box(gmem, bytes, "bulk_load", where), full, 0, "bulk_load",
                       where);
}
inline void bulk_store(void* gmem, const void* smem, int bytes,
                       emu::Where where = emu::Where::current()) {
  emu::start_bulk_store(emu::byte_box(gmem, bytes, "bulk_store", where), smem, "bulk_store", where);
}

inline void bulk_commit() { emu::commit_bulk_stores(); }
template <int kPending>
void bulk_wait() {
  emu::finish_bulk_stores(kPending, true);
}
template <int kPending>
void bulk_wait_read() {
  emu::finish_bulk_stores(kPending, false);
}

inline void tma_prefetch(const TensorMap* map, emu::Where where = emu::Where::current()) {
  emu::check_access(map, alignof(TensorMap), "tma_prefetch", where);
}

}  // namespace lamina::dev
