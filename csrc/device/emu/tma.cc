#include "device/emu/tma.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "device/emu/block.h"
#include "device/emu/memory.h"

namespace lamina::dev::emu {
namespace {

constexpr int kBulkAlignment = 16, kTensorAlignment = 128;  // in shared memory

bool is_plain(const Box& box) { return box.tensor.rank == 1; }

uint32_t checked_offset(const void* smem, const Box& box, const char* name, Where where) {
  const uint32_t offset = offset_in_smem(smem, box.bytes(), name, where);
  const int alignment = is_plain(box)
                            ? kBulkAlignment
                            : std::max(kTensorAlignment, swizzle_alignment(box.tensor.swizzle));
  if (offset % static_cast<uint32_t>(alignment) != 0)
    fail(std::string(name) + ": smem + " + std::to_string(offset) + " is not a multiple of " +
             std::to_string(alignment),
         where);
  return offset;
}

void start_load_to(Block& block, uint32_t offset, uint32_t barrier_offset, const Box& from,
                   const char* name, Where where) {
  MBarrierState& barrier = find_mbarrier(block, barrier_offset, name, where);
  const Fiber& initialiser = block.fibers[static_cast<size_t>(barrier.initialiser)];
  if (initialiser.fences.init == barrier.init_fences)
    fail(std::string(name) + ": thread " + std::to_string(initialiser.thread) +
             " initialised the mbarrier at smem + " + std::to_string(barrier_offset) +
             " and has not called fence_mbarrier_init since",
         where);
  const int bytes = from.bytes();
  check_fenced(block, offset, bytes, name, where);
  for (const auto& [at, other] : block.mbarriers)
    for (const BulkLoad& load : other.loads)
      if (load.offset < offset + static_cast<uint32_t>(bytes) &&
          offset < load.offset + static_cast<uint32_t>(load.from.bytes()))
        fail(
            place(std::string(name) + ": the destination has a copy in flight, issued", load.where),
            where);
  const Clock& clock = self().clock;
  write_block(block, clock, Access::by(clock, barrier.actor, barrier.phase + 1, where),
              static_cast<int>(offset), bytes, true, name, where);
  std::memset(block.smem.get() + offset, poison(), static_cast<size_t>(bytes));
  barrier.loads.push_back({offset, from, where, {}});
  if (reads_sources_early()) {
    std::vector<std::byte>& early = barrier.loads.back().early;
    early.resize(static_cast<size_t>(bytes));
    from.load(early.data(), offset);
  }
  ++block.loads_in_flight;
}

void read_source(BulkStore& store) {
  if (std::exchange(store.is_read, true)) return;
  if (std::memcmp(smem_of(self()) + store.offset, store.bytes.data(), store.bytes.size()) != 0)
    fail("bulk store: its source in shared memory changed while it was in flight", store.where);
}

void write_out(std::vector<BulkStore>& group) {
  for (const BulkStore& store : group) store.to.store(store.bytes.data(), store.offset);
  group.clear();
}

}  // namespace

Box tensor_box(const TensorMap* map, const int32_t* at, int rank, const char* name, Where where) {
  Box box;
  box.tensor = tensor_of(*map, rank, name, where);
  std::copy_n(at, rank, box.at);
  return box;
}

Box byte_box(const void* gmem, int bytes, const char* name, Where where) {
  check_access(gmem, kBulkAlignment, name, where);
  if (bytes <= 0 || bytes % kBulkAlignment != 0)
    fail(std::string(name) + ": " + std::to_string(bytes) + " bytes, not a multiple of 16", where);
  Box box;
  box.tensor.base = gmem;
  box.tensor.rank = 1;
  box.tensor.extent[0] = box.tensor.box[0] = bytes;
  return box;
}

void start_bulk_load(void* smem, const Box& from, MBarrier* full, uint16_t ranks, const char* name,
                     Where where) {
  const uint32_t offset = checked_offset(smem, from, name, where);
  check_access(full, sizeof(MBarrier), name, where);
  const uint32_t barrier = offset_in_smem(full, sizeof(MBarrier), name, where);
  for (const std::span<std::byte> run : from.runs())
    read_global_async(run.data(), static_cast<int>(run.size()), name, where);
  if (ranks == 0) return start_load_to(*self().block, offset, barrier, from, name, where);
  for (int rank = 0; rank < 16; ++rank)
    if (ranks >> rank & 1)
      start_load_to(block_of_rank(rank, name, where), offset, barrier, from, name, where);
}

std::vector<DueLoad> due_loads(const std::vector<std::unique_ptr<Block>>& blocks) {
  std::vector<DueLoad> due;
  for (const std::unique_ptr<Block>& block : blocks) {
    if (block->loads_in_flight == 0) continue;
    for (auto& [offset, barrier] : block->mbarriers)
      if (!barrier.waiting.empty())
        for (size_t i = 0; i < barrier.loads.size(); ++i) due.push_back({block.get(), &barrier, i});
  }
  return due;
}

void deliver(const DueLoad& due) {
  const auto at = due.barrier->loads.begin() + static_cast<ptrdiff_t>(due.index);
  const BulkLoad load = *at;
  due.barrier->loads.erase(at);
  --due.block->loads_in_flight;
  std::byte* const to = due.block->smem.get() + load.offset;
  if (load.early.empty())
    load.from.load(to, load.offset);
  else
    std::copy(load.early.begin(), load.early.end(), to);
  due.block->log.deliver(due.barrier->actor, due.barrier->phase + 1, static_cast<int>(load.offset),
                         load.from.bytes(), 0);
  complete_bytes(*due.block, *due.barrier, load.from.bytes());
}

void start_bulk_store(const Box& to, const void* smem, const char* name, Where where) {
  const uint32_t offset = checked_offset(smem, to, name, where);
  check_fenced(*self().block, offset, to.bytes(), name, where);
  Fiber& fiber = self();
  if (fiber.store_actor < 0) {
    fiber.store_actor = fiber.block->cluster->actors;
    fiber.block->cluster->actors += 2;
  }
  const uint32_t group = fiber.committed_stores + 1;
  read_block(*fiber.block, fiber.clock, Access::by(fiber.clock, fiber.store_actor, group, where),
             static_cast<int>(offset), to.bytes(), name, where);
  for (const std::span<std::byte> run : to.runs())
    write_global_async(run.data(), static_cast<int>(run.size()), fiber.store_actor + 1, group, name,
                       where);
  const std::byte* const from = static_cast<const std::byte*>(smem);
  self().open_stores.push_back({offset, to, {from, from + to.bytes()}, false, where});
}

void commit_bulk_stores() {
  self().store_groups.push_back(std::exchange(self().open_stores, {}));
  ++self().committed_stores;
}

void finish_bulk_stores(int pending_groups, bool writes) {
  Fiber& fiber = self();
  auto& groups = fiber.store_groups;
  for (size_t i = 0; i + static_cast<size_t>(pending_groups) < groups.size(); ++i)
    for (BulkStore& store : groups[i]) read_source(store);
  const uint32_t pending = static_cast<uint32_t>(pending_groups);
  if (fiber.store_actor >= 0 && fiber.committed_stores > pending)
    for (int actor = fiber.store_actor; actor <= fiber.store_actor + int{writes}; ++actor)
      fiber.clock.view.learn(actor, fiber.committed_stores - pending);
  while (writes && groups.size() > static_cast<size_t>(pending_groups)) {
    write_out(groups.front());
    groups.pop_front();
  }
}

void end_thread() {
  Fiber& fiber = self();
  Block& block = *fiber.block;
  if (!fiber.open_stores.empty())
    fail("a thread ended with a bulk store that it never committed", fiber.open_stores[0].where);
  for (const std::vector<BulkStore>& group : fiber.store_groups)
    for (const BulkStore& store : group)
      if (!store.is_read)
        fail("a thread ended with a bulk store whose source may not have been read", store.where);
  end_cluster_barrier(fiber);
  if (block.live > 1) return;
  for (const auto& [offset, barrier] : block.mbarriers)
    for (const BulkLoad& load : barrier.loads)
      fail("the block ended with a bulk load in flight; " + barrier.describe(), load.where);
  for (Fiber& other : block.fibers)
    for (std::vector<BulkStore>& group : other.store_groups) write_out(group);
}

}  // namespace lamina::dev::emu
