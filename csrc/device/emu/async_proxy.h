// The asynchronous half of a block: its mbarriers, and its bulk copies in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "device/emu/box.h"
#include "device/emu/clock.h"
#include "device/emu/executor.h"
#include "device/types.h"

namespace lamina::dev::emu {

// The numbers of fences that a thread has executed.
struct ProxyFences {
  uint32_t async = 0;  // fence_proxy_async
  uint32_t init = 0;   // fence_proxy_async or fence_mbarrier_init; mbarriers need either
};

struct BulkLoad {
  uint32_t offset;  // in shared memory
  Box from;
  Where where;
  std::vector<std::byte> early;  // the data, if they were read when the copy was issued
};

struct BulkStore {
  uint32_t offset;
  Box to;
  std::vector<std::byte> bytes;  // the data at the time when the copy was issued
  bool is_read;                  // the source may be overwritten
  Where where;
};

// The state that hardware keeps in the eight bytes of an mbarrier. The emulator stores a seal of place and phase in
// these bytes, so that it notices any write to them.
struct MBarrierState {
  uint32_t offset = 0;
  uint32_t phase = 0;
  int expected = 0, pending = 0;  // arrivals of a phase; arrivals still missing in this phase
  int64_t missing_bytes = 0;      // below zero: more bytes came than were announced
  int initialiser = 0;            // the thread that initialised the barrier
  uint32_t init_fences = 0;       // fences that this thread had executed before
  int actor = 0;                  // the actor of the copies that count here
  Gathering arriving;             // the knowledge of the threads that have arrived so far
  View before;                    // the knowledge of all arrivals in earlier phases
  std::vector<Fiber*> waiting;    // threads that wait for the end of the phase
  std::vector<BulkLoad> loads;    // copies in flight that will count here

  uint64_t seal() const;
  std::string describe() const;
};

inline constexpr int kMaxMBarrierCount = (1 << 20) - 1;  // of arrivals and of bytes

// The barrier at `offset` of a block's shared memory. Fails if there is none, or if its bytes have been overwritten.
MBarrierState& find_mbarrier(Block& block, uint32_t offset, const char* name, Where where);
void complete_bytes(Block& block, MBarrierState& barrier, int64_t bytes);

// Called before the async proxy reads or writes shared memory: fails if a thread wrote these bytes and has not fenced
// since.
void check_fenced(Block& block, uint32_t offset, int bytes, const char* name, Where where);

const TensorMapSpec& tensor_of(const TensorMap& map, int rank, const char* name, Where where);

}  // namespace lamina::dev::emu
