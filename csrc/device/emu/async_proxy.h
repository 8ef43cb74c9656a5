// What the asynchronous half of a block holds: mbarriers, bulk copies in flight, and which bytes of
// shared memory were last written by threads, whose writes the async proxy sees only after a fence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "device/emu/executor.h"
#include "device/types.h"

namespace lamina::dev::emu {

// Fences that a thread has executed.
struct ProxyFences {
  uint32_t async = 0;  // fence_proxy_async
  uint32_t init = 0;   // that or fence_mbarrier_init: what an mbarrier needs
};

// By 4-byte word of shared memory: which thread wrote it last, and after how many fences. A thread's
// writes count as fenced when that thread has executed a fence since: PTX would also accept one by
// another thread that synchronised with the writer, which nobody should rely on.
class WriteLog {
 public:
  WriteLog() = default;
  explicit WriteLog(int smem_bytes) : words_(static_cast<size_t>(smem_bytes + 3) / 4) {}

  void note(int offset, int bytes, int writer, uint32_t fences) {
    const uint32_t word = static_cast<uint32_t>(writer + 1) << kFenceBits | (fences & kFenceMask);
    for (int i = offset / 4; 4 * i < offset + bytes; ++i) words_[static_cast<size_t>(i)] = word;
  }
  void forget(int offset, int bytes) {
    for (int i = offset / 4; 4 * i < offset + bytes; ++i) words_[static_cast<size_t>(i)] = 0;
  }
  // -1 where the async proxy was the last, or nobody.
  int writer(int offset) const {
    return static_cast<int>(words_[static_cast<size_t>(offset / 4)] >> kFenceBits) - 1;
  }
  bool is_fenced(int offset, uint32_t fences) const {
    return (words_[static_cast<size_t>(offset / 4)] & kFenceMask) != (fences & kFenceMask);
  }

 private:
  // 15 bits are left for a thread of a cluster.
  static constexpr int kFenceBits = 17;
  static constexpr uint32_t kFenceMask = (1u << kFenceBits) - 1;

  std::vector<uint32_t> words_;
};

// One side of a bulk copy in global memory: a box of a tensor. Plain bytes are a tensor of rank 1.
struct Box {
  TensorMapSpec tensor;
  int32_t at[kMaxTensorRank] = {};

  int bytes() const;  // in shared memory, elements beyond the tensor included
  // `smem` is its first byte, `address` where that is in shared memory: swizzles go by it.
  void load(std::byte* smem, uint32_t address) const;
  void store(const std::byte* smem, uint32_t address) const;
};

struct BulkLoad {
  uint32_t offset;  // in shared memory
  Box from;
  Where where;
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
  std::vector<Fiber*> waiting;    // for the phase to end
  std::vector<BulkLoad> loads;    // in flight, to be counted here

  uint64_t seal() const;
  std::string describe() const;
};

inline constexpr int kMaxMBarrierCount = (1 << 20) - 1;  // of arrivals and of bytes

// The barrier at `at` of a block's shared memory, if there is one; fails where its bytes say otherwise.
MBarrierState& find_mbarrier(Block& block, uint32_t offset, const char* name, Where where);
void complete_bytes(Block& block, MBarrierState& barrier, int64_t bytes);

// Fails if a thread wrote there and has not fenced.
void check_fenced(Block& block, uint32_t offset, int bytes, const char* name, Where where);

// Offset in the block's shared memory of what must lie within it.
uint32_t offset_in_smem(const void* smem, int bytes, const char* name, Where where);

const TensorMapSpec& tensor_of(const TensorMap& map, int rank, const char* name, Where where);

}  // namespace lamina::dev::emu
