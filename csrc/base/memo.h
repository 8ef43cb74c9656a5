// A cache of the results of a pure function. Each thread has its own table: a hit takes no lock and allocates nothing,
// memory is bounded, and a forked process keeps the entries of its parent.
//
//   const auto key = memo_key(problem.m, problem.n, device.sm_count);
//   static thread_local Memo<key.size(), Plan, 64> known(host_work().plans);
//   if (const Plan* plan = known.find(key)) return *plan;
//   return known.keep(key, make_plan(problem, device));
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "base/memo_key.h"

namespace lamina {

// Holds up to kSets * kWays values. The hash of a key chooses a set; within the set, keys are compared in full.
template <size_t kWords, class Value, size_t kSets>
class Memo {
 public:
  using Key = MemoKey<kWords>;
  static constexpr size_t kWays = 4;

  // made: counts the values that all threads have kept.
  explicit Memo(std::atomic<int64_t>& made) : made_(made) {}

  // The value of a key, valid until the next keep(); nullptr if there is none.
  const Value* find(const Key& key) const {
    if (sets_.empty()) return nullptr;
    const uint64_t hash = hash_of(key);
    const Set& set = sets_[index_of(hash)];
    for (size_t way = 0; way < kWays; ++way)
      if (set.hashes[way] == hash && set.keys[way] == key) return &set.values[way];
    return nullptr;
  }

  // Replaces the oldest value of the set. The key must be new.
  const Value& keep(const Key& key, const Value& value) {
    if (sets_.empty()) sets_.resize(kSets);
    const uint64_t hash = hash_of(key);
    Set& set = sets_[index_of(hash)];
    const size_t way = set.oldest;
    set.oldest = (way + 1) % kWays;
    set.hashes[way] = hash;
    set.keys[way] = key;
    set.values[way] = value;
    made_.fetch_add(1, std::memory_order_relaxed);
    return set.values[way];
  }

  // Multiplications carry every word into the high bits, which choose the set.
  static uint64_t hash_of(const Key& key) {
    uint64_t hash = 0;
    for (const uint64_t word : key) hash = (std::rotl(hash, 5) ^ word) * 0x9e3779b97f4a7c15u;
    return hash | 1;
  }

 private:
  static_assert(std::has_single_bit(kSets) && kSets > 1 && std::is_trivially_copyable_v<Value>);

  struct Set {
    std::array<uint64_t, kWays> hashes{};  // 0: empty
    std::array<Key, kWays> keys{};
    std::array<Value, kWays> values{};
    size_t oldest = 0;
  };

  static size_t index_of(uint64_t hash) {
    return static_cast<size_t>(hash >> (64 - std::countr_zero(kSets)));
  }

  std::vector<Set> sets_;  // allocated by the thread's first keep()
  std::atomic<int64_t>& made_;
};

// Counts the values that all threads have made since the process began. A call that repeats adds nothing.
struct HostWork {
  std::atomic<int64_t> plans{0}, tensor_maps{0}, devices{0};
};
HostWork& host_work();

}  // namespace lamina
