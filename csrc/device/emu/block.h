// A block while it runs: a fiber for each thread, its warps, its barriers, its shared memory.
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
#include "device/emu/executor.h"
#include "device/emu/fiber.h"

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
  std::vector<AsyncCopy> open_group;
  std::deque<std::vector<AsyncCopy>> groups;
  std::vector<BulkStore> open_stores;
  std::deque<std::vector<BulkStore>> store_groups;
  ProxyFences fences;
  const MBarrierState* waits_for = nullptr;
  bool is_in_cluster_barrier = false;  // arrived, has not waited
  uint32_t cluster_phase = 0;          // in which it arrived

  uint32_t bit() const { return 1u << (thread % kWarpLanes); }
};

struct WgmmaState;  // wgmma.cc

class Warp {
 public:
  struct Meeting {
    uint32_t mask, arrived;
    const char* name;
    Where where;
    std::array<void*, kWarpLanes> arguments;
  };

  uint32_t ready = 0, polling = 0, live = 0;  // lanes
  Block* block = nullptr;
  int first_thread = 0;
  std::vector<Meeting> meetings;
  std::shared_ptr<WgmmaState> wgmma;
};

// Blocks that run together; one alone is a cluster too.
struct Cluster {
  std::vector<Block*> blocks;  // by rank; null when it has ended
  int arrived = 0;             // threads at the cluster's barrier
  uint32_t phase = 0;          // of that barrier
  std::vector<Fiber*> waiting;
};

class Block {
 public:
  static constexpr int kBarriers = 16;  // PTX

  struct Barrier {
    int expected = 0, arrived = 0;
    std::vector<Fiber*> waiting;
  };

  Index3 index;
  std::unique_ptr<std::byte[], void (*)(std::byte*)> smem{nullptr, nullptr};
  int smem_bytes = 0;
  WriteLog writes;
  std::map<uint32_t, MBarrierState> mbarriers;  // by offset in shared memory
  int loads_in_flight = 0;
  std::shared_ptr<Cluster> cluster;
  int rank = 0;  // in the cluster
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::array<Barrier, kBarriers> barriers;
  int live = 0;
};

// A block of this thread's cluster whose shared memory is there.
Block& block_of_rank(int rank, const char* name, Where where);

// A copy whose barrier somebody waits for.
struct DueLoad {
  Block* block;
  MBarrierState* barrier;
  size_t index;
};
std::vector<DueLoad> due_loads(const std::vector<std::unique_ptr<Block>>& blocks);
void deliver(const DueLoad& due);

// What a thread may not leave behind; the last of a block ends the block.
void end_thread();
void end_cluster_barrier(Fiber& fiber);

// Every warp of every block that lives, and what it waits for.
std::string describe_waiting(const std::vector<std::unique_ptr<Block>>& blocks);
std::string text(Index3 at);

}  // namespace lamina::dev::emu
