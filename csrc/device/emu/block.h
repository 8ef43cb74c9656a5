// A block while it runs: a fiber for each thread, its warps, its barriers, its shared memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

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

  uint32_t bit() const { return 1u << (thread % kWarpLanes); }
};

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
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::array<Barrier, kBarriers> barriers;
  int live = 0;
};

}  // namespace lamina::dev::emu
