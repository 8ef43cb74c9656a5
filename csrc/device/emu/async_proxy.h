// What the asynchronous half of a block holds: mbarriers and bulk copies in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "device/emu/clock.h"
#include "device/emu/executor.h"
#include "device/types.h"

namespace lamina::dev::emu {

// Fences that a thread has executed.
struct ProxyFences {
  uint32_t async = 0;  // fence_proxy_async
  uint32_t init = 0;   // that or fence_mbarrier_init: what an mbarrier needs
};

// One side of a bulk copy in global memory: a box of a tensor. Plain bytes are a tensor of rank 1.
struct Box {
  TensorMapSpec tensor;
  int32_t at[kMaxTensorRank] = {};

  int bytes() const;  // in shared memory, elements beyond the tensor included
  // `smem` is its first byte, `address` where that is in shared memory: swizzles go by it.
  void load(std::byte* smem, uint32_t address) const;
  void store(const std::byte* smem, uint32_t address) const;
  // visit(first byte, bytes) for what of it lies in the tensor.
  void each_run(const std::function<void(std::byte*, int)>& visit) const;
};

struct BulkLoad {
  uint32_t offset;  // in shared memory
  Box from;
  Where where;
  std::vector<std::byte> early;  // its bytes, if they were read when it was issued
};

struct BulkStore {
  uint32_t offset;
  Box to;
  std::vector<std::byte> bytes;  // as they were when it was issued
  bool is_read;                  // the source may be written again
  Where where;
};

// The state that hardware keeps in the eight bytes of an mbarrier. There the twin keeps a seal of place
// and phase instead, so that any write of theirs is noticed.
struct MBarrierState {
  uint32_t offset = 0;
  uint32_t phase = 0;
  int expected = 0, pending = 0;  // arrivals of a phase; those still to come in this one
  int64_t missing_bytes = 0;      // below zero: more came than was announced
  int initialiser = 0;            // thread
  uint32_t init_fences = 0;       // that it had executed before
  int actor = 0;                  // the copies that it counts
  Gathering arriving;             // so far
  View before;                    // what all knew who arrived before this phase
  std::vector<Fiber*> waiting;    // for the phase to end
  std::vector<BulkLoad> loads;    // in flight, to be counted here

  uint64_t seal() const;
  std::string describe() const;
};

inline constexpr int kMaxMBarrierCount = (1 << 20) - 1;  // of arrivals and of bytes

// The barrier at `at` of a block's shared memory, if there is one; fails where its bytes say otherwise.
MBarrierState& find_mbarrier(Block& block, uint32_t offset, const char* name, Where where);
void complete_bytes(Block& block, MBarrierState& barrier, int64_t bytes);

// Before the async proxy reads or writes shared memory: fails if a thread wrote there and has not fenced.
void check_fenced(Block& block, uint32_t offset, int bytes, const char* name, Where where);

const TensorMapSpec& tensor_of(const TensorMap& map, int rank, const char* name, Where where);

}  // namespace lamina::dev::emu
