// The state of a running block: a fiber for each thread, the warps, the barriers, the shared memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device/emu/async_proxy.h"
#include "device/emu/clock.h"
#include "device/emu/executor.h"
#include "device/emu/fiber.h"
#include "device/emu/smem_log.h"

namespace lamina::dev::emu {

struct Fiber {
  enum class State : uint8_t { kReady, kWaiting, kPolling, kDone };

  Context context;
  State state = State::kReady;
  int thread = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  const char* waits_in = "";
  Where where;
  Clock clock;
  std::vector<AsyncCopy> open_group;
  std::deque<std::vector<AsyncCopy>> groups;
  std::vector<BulkStore> open_stores;
  std::deque<std::vector<BulkStore>> store_groups;
  uint32_t committed_stores = 0;  // groups of bulk stores
  int store_actor = -1;           // the actor that reads their sources; store_actor + 1 writes
  ProxyFences fences;
  const MBarrierState* waits_for = nullptr;
  bool is_in_cluster_barrier = false;  // has arrived and not waited
  uint32_t cluster_phase = 0;          // the phase in which it arrived

  uint32_t bit() const { return 1u << (thread % kWarpLanes); }
};

struct WgmmaState;  // wgmma.cc

class Warp {
 public:
  struct Meeting {
    uint32_t mask, arrived;
    const char* name;
    Where where;
    Lanes arguments;
  };

  uint32_t all = 0, ready = 0, polling = 0, live = 0;  // lanes
  Block* block = nullptr;
  int first_thread = 0;
  std::vector<Meeting> meetings;
  std::shared_ptr<WgmmaState> wgmma;

  Fiber& lane(int number);
};

// Blocks that run together. A single block is a cluster too.
struct Cluster {
  int64_t number = 0;          // the number of its first block
  std::vector<Block*> blocks;  // by rank; nullptr for a block that has ended
  int threads = 0;             // threads of a block
  int actors = 0;              // actors so far; the first are all threads
  int arrived = 0;             // threads at the cluster barrier
  uint32_t phase = 0;          // phase of the cluster barrier
  std::vector<Fiber*> waiting;
  Gathering arriving;  // the knowledge of the threads at the cluster barrier
  View before;         // the knowledge of all arrivals in the phase before

  int all_threads() const { return static_cast<int>(blocks.size()) * threads; }
};

class Block {
 public:
  static constexpr int kBarriers = 16;  // PTX

  struct Barrier {
    int expected = 0, arrived = 0;  // threads, in whole warps
    std::vector<Fiber*> waiting;
    Gathering clock;
  };

  Index3 index;
  std::unique_ptr<std::byte[], void (*)(std::byte*)> smem{nullptr, nullptr};
  int smem_bytes = 0;
  SmemLog log;
  std::map<uint32_t, MBarrierState> mbarriers;  // by offset in shared memory
  int loads_in_flight = 0;
  std::shared_ptr<Cluster> cluster;
  int rank = 0;  // in the cluster
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::array<Barrier, kBarriers> barriers;
  int live = 0;

  // The offset of `at` in this block's shared memory, or -1.
  int offset_of(const void* at, int bytes) const {
    const int64_t offset = reinterpret_cast<intptr_t>(at) - reinterpret_cast<intptr_t>(smem.get());
    return offset >= 0 && offset + bytes <= smem_bytes ? static_cast<int>(offset) : -1;
  }
};

inline Fiber& Warp::lane(int number) {
  return block->fibers[static_cast<size_t>(first_thread + number)];
}

// The lanes of `mask` meet and wait for the last of them. The last lane gets true and the arguments of all lanes, and
// must wake the others, which then get false.
bool come_together(uint32_t mask, const char* name, Where where, void* arguments, Lanes& all);
void wake_lanes(Warp& warp, uint32_t mask);  // all but the caller

// Notes a read of a block's shared memory. An error names this thread and `where`.
void read_block(Block& block, const Clock& viewer, const Access& by, int offset, int bytes,
                const char* name, Where where);
// Fails as a read would fail, but does not count as a read.
void look_at_block(Block& block, const Clock& viewer, int offset, int bytes, const char* name,
                   Where where);
// Fails unless `viewer` knows the write.
void know_write(const Block& block, const Clock& viewer, const Access& write, const char* name,
                Where where);
void write_block(Block& block, const Clock& viewer, const Access& by, int offset, int bytes,
                 bool starts_copy, const char* name, Where where);

// The log of global memory of this launch.
class GmemLog;
GmemLog& gmem_log();
const char* space_of(const void* at, int bytes);  // for messages; nullptr: global memory
std::string thread_text(int64_t cluster, int thread);
bool reads_sources_early();   // copies of this launch read global memory when they start
void let_others_interfere();  // on some seeds, sometimes

// A block of this thread's cluster. Fails if its shared memory does not exist yet or any more.
Block& block_of_rank(int rank, const char* name, Where where);

// A copy that may be delivered, because a thread waits for its barrier.
struct DueLoad {
  Block* block;
  MBarrierState* barrier;
  size_t index;
};
std::vector<DueLoad> due_loads(const std::vector<std::unique_ptr<Block>>& blocks);
void deliver(const DueLoad& due);

// Ends this thread: fails if it leaves unfinished work behind. The last thread of a block ends the block.
void end_thread();
void end_cluster_barrier(Fiber& fiber);

// Describes every warp of the running blocks and the place where it waits.
std::string describe_waiting(const std::vector<std::unique_ptr<Block>>& blocks);
std::string text(Index3 at);

}  // namespace lamina::dev::emu
