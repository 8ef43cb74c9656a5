#include "device/emu/cluster.h"

#include <bit>
#include <utility>

#include "device/emu/block.h"

namespace lamina::dev::emu {
namespace {

int live_threads(const Cluster& cluster) {
  int live = 0;
  for (const Block* block : cluster.blocks) live += block ? block->live : 0;
  return live;
}

void end_phase(Cluster& cluster) {
  cluster.arrived = 0;
  ++cluster.phase;
  cluster.before = cluster.arriving.view();
  cluster.arriving.clear();
  for (Fiber* fiber : std::exchange(cluster.waiting, {})) wake(*fiber);
}

}  // namespace

int cluster_rank() { return self().block->rank; }
int cluster_size() { return static_cast<int>(self().block->cluster->blocks.size()); }

Block& block_of_rank(int rank, const char* name, Where where) {
  Fiber& fiber = self();
  Cluster& cluster = *fiber.block->cluster;
  if (rank < 0 || rank >= static_cast<int>(cluster.blocks.size()))
    fail(std::string(name) + ": rank " + std::to_string(rank) + " of " +
             std::to_string(cluster.blocks.size()),
         where);
  Block* const block = cluster.blocks[static_cast<size_t>(rank)];
  if (!block)
    fail(std::string(name) + ": block " + std::to_string(rank) +
             " of the cluster has ended, its shared memory is gone",
         where);
  if (block != fiber.block && cluster.phase == 0)
    fail(std::string(name) + ": block " + std::to_string(rank) +
             " of the cluster may not have started: no cluster barrier so far",
         where);
  return *block;
}

void* cluster_pointer(const void* smem, int bytes, int rank, const char* name, Where where) {
  const uint32_t offset = offset_in_smem(smem, bytes, name, where);
  return block_of_rank(rank, name, where).smem.get() + offset;
}

// barrier.cluster.arrive is .aligned: all lanes that the warp began with must call it.
void arrive_cluster(const char* name, Where where) {
  Warp& warp = *self().warp;
  Cluster& cluster = *self().block->cluster;
  if (self().is_in_cluster_barrier)
    fail(std::string(name) + ": this thread has arrived before and not waited", where);
  meet(warp.all, name, where, nullptr, [&](const auto&) {
    for (uint32_t lanes = warp.all; lanes; lanes &= lanes - 1) {
      Fiber& lane = warp.lane(std::countr_zero(lanes));
      lane.is_in_cluster_barrier = true;
      lane.cluster_phase = cluster.phase;
      cluster.arriving.add(lane.clock);
    }
    cluster.arrived += std::popcount(warp.all);
    if (cluster.arrived == live_threads(cluster)) end_phase(cluster);
  });
}

void wait_cluster(const char* name, Where where) {
  Fiber& fiber = self();
  Cluster& cluster = *fiber.block->cluster;
  if (!fiber.is_in_cluster_barrier)
    fail(std::string(name) + ": this thread has not arrived", where);
  meet(fiber.warp->all, name, where, nullptr, [](const auto&) {});  // .aligned
  if (fiber.cluster_phase == cluster.phase) {
    cluster.waiting.push_back(&fiber);
    suspend(name, where);
  }
  fiber.is_in_cluster_barrier = false;
  fiber.clock.view.join(cluster.before);
}

// The cluster barrier does not wait for threads that have ended.
void end_cluster_barrier(Fiber& fiber) {
  Cluster& cluster = *fiber.block->cluster;
  if (fiber.is_in_cluster_barrier && fiber.cluster_phase == cluster.phase) --cluster.arrived;
  if (cluster.arrived > 0 && cluster.arrived == live_threads(cluster) - 1) end_phase(cluster);
}

}  // namespace lamina::dev::emu
