// A row of logits for a block of threads: the search for its distribution, and a draw from it.
//
// Every warp owns a contiguous part of the row. The sums of the parts, which are integers, lead a draw to one warp, and
// a prefix sum over the lanes of this warp then leads it to one token. All threads get all results.
//
// A threshold is found by bisection of the keys. A pass over the row gives the mass of the keys >= a pivot, the least
// of these keys, and the greatest key below the pivot, so that the search always ends at a key of the row. The first
// pivots begin near the largest logit and fall.
#pragma once

#include <algorithm>
#include <limits>

#include "base/int_math.h"
#include "block/reduce.cuh"
#include "block/runs.cuh"
#include "device/device.h"
#include "ops/sample/weights.h"

namespace lamina::sample {

inline constexpr int kThreads = 256, kWarps = kThreads / dev::kWarpLanes;

// Shared memory of a block.
struct RowSmem {
  uint64_t sum[kWarps];
  int32_t extreme[2 * kWarps];
};

LAMINA_DEVICE uint64_t shuffle_xor(uint64_t x, int mask) {
  const uint32_t low = dev::shuffle_xor(static_cast<uint32_t>(x), mask);
  return uint64_t{dev::shuffle_xor(static_cast<uint32_t>(x >> 32), mask)} << 32 | low;
}
LAMINA_DEVICE uint64_t shuffle_up(uint64_t x, int delta) {
  const uint32_t low = dev::shuffle_up(static_cast<uint32_t>(x), delta);
  return uint64_t{dev::shuffle_up(static_cast<uint32_t>(x >> 32), delta)} << 32 | low;
}

// The sum over the block. smem.sum keeps the sums of the warps until the next call.
LAMINA_DEVICE uint64_t sum_of_block(uint64_t x, RowSmem* smem) {
#pragma unroll
  for (int step = dev::kWarpLanes / 2; step > 0; step /= 2) x += shuffle_xor(x, step);
  dev::block_sync();  // all threads have read the sums of the call before
  if (dev::lane() == 0) dev::store_shared(smem->sum + dev::warp(), x);
  dev::block_sync();
  uint64_t sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += dev::load_shared(smem->sum + w);
  return sum;
}

LAMINA_DEVICE void extremes(int32_t& low, int32_t& high, RowSmem* smem) {
  dev::block_sync();  // all threads have read the extremes of the call before
  extremes_of_block<kWarps>(low, high, smem->extreme);
}

// 16 bytes of logits a lane.
template <class T>
class BlockRow {
 public:
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
  static constexpr int kStep = kChunk * dev::kWarpLanes;  // tokens of a warp at once
  using Chunk = Run<T, kChunk>;

  LAMINA_DEVICE BlockRow(int64_t vocab, RowSmem* smem)
      : n_(vocab), part_(round_up(ceil_div(vocab, int64_t{kWarps}), kStep)), smem_(smem) {}

  LAMINA_DEVICE const Distribution& distribution() const { return d_; }
  LAMINA_DEVICE float logit(int64_t token) const { return to_f32(dev::load_global(x_ + token)); }

  LAMINA_DEVICE Flag set(const T* x, const Settings& s) {
    x_ = x;
    d_ = {};
    if (!s.are_valid()) return d_.flag = Flag::kParameter;
    int32_t smallest = std::numeric_limits<int32_t>::max(), largest = kLowest;
    for_keys([&](int64_t, int32_t key, float) {
      smallest = std::min(smallest, key);
      largest = std::max(largest, key);
    });
    extremes(smallest, largest, smem_);
    if (largest >= kInf || (n_ > 0 && smallest < kMinusInf)) return d_.flag = Flag::kNotFinite;
    if (largest <= kMinusInf) return d_.flag = Flag::kNoToken;
    if (s.temperature == 0.0f) {
      d_.greedy = first_of(largest);
      d_.total = 1;
      return d_.flag;
    }
    d_.largest = value_of(largest);
    d_.inverse_temperature = s.inverse_temperature();
    const bool has_top_k = s.has_top_k(n_);
    if (has_top_k)
      d_.threshold = threshold(static_cast<uint64_t>(s.top_k), smallest, largest,
                               [](float) { return uint64_t{1}; });
    const auto weight_of_value = [&](float value) { return d_.weight(value); };
    if (s.has_top_p()) {
      const uint64_t all = total(weight_of_value);
      const int32_t least = std::max(d_.threshold, smallest);
      d_.threshold = threshold(s.mass_of_top_p(all), least, largest, weight_of_value);
    }
    d_.least = s.least_weight();
    d_.total = total(weight_of_value);
    return d_.flag;
  }

  // body(token, key, value) for this thread's tokens.
  template <class Body>
  LAMINA_DEVICE void for_keys(const Body& body) const {
    for (int64_t j = begin(); j < end(); j += kStep) {
      const int count = count_at(j);
      const Chunk chunk = load(j, count);
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        const float value = to_f32(chunk.value[e]);
        if (e < count) body(j + e, key_of(value), value);
      }
    }
  }

  // The first token at which the running sum of weights exceeds `left`. weight(token, value) must be the weight whose
  // sums over the warps are in smem.sum.
  template <class Weight>
  LAMINA_DEVICE int32_t find(uint64_t left, const Weight& weight) const {
    int at = 0;
    for (uint64_t sum; left >= (sum = dev::load_shared(smem_->sum + at)); ++at) left -= sum;
    if (dev::warp() == at) {
      // All lanes stay in the loop for the shuffles.
      bool is_found = false;
      for (int64_t first = at * part_; !is_found; first += kStep) {
        const int64_t j = first + dev::lane() * kChunk;
        const int count = j < n_ ? count_at(j) : 0;
        uint64_t weights[kChunk] = {}, mine = 0;
        if (count > 0) {
          const Chunk chunk = load(j, count);
#pragma unroll
          for (int e = 0; e < kChunk; ++e) {
            if (e < count) weights[e] = weight(j + e, to_f32(chunk.value[e]));
            mine += weights[e];
          }
        }
        uint64_t up_to = mine;
#pragma unroll
        for (int step = 1; step < dev::kWarpLanes; step *= 2) {
          const uint64_t before = shuffle_up(up_to, step);
          if (dev::lane() >= step) up_to += before;
        }
        const bool is_here = left < up_to && left >= up_to - mine;
        if (is_here) {
          uint64_t rest = left - (up_to - mine);
          int32_t token = 0;
          bool is_past = false;
#pragma unroll
          for (int e = 0; e < kChunk; ++e) {
            if (!is_past && rest < weights[e]) {
              token = static_cast<int32_t>(j + e);
              is_past = true;
            }
            rest -= is_past ? 0 : weights[e];
          }
          dev::store_shared(smem_->extreme, token);
        }
        is_found = dev::any(is_here);
        uint64_t last = up_to;  // the sum of the warp, from its last lane
        const uint32_t low = dev::shuffle(static_cast<uint32_t>(last), dev::kWarpLanes - 1);
        last = uint64_t{dev::shuffle(static_cast<uint32_t>(last >> 32), dev::kWarpLanes - 1)}
                   << 32 |
               low;
        left -= is_found ? 0 : last;
      }
    }
    dev::block_sync();
    return dev::load_shared(smem_->extreme);
  }

  LAMINA_DEVICE int32_t draw(uint64_t u) const {
    if (d_.greedy >= 0) return d_.greedy;
    return find(below(d_.total, u), [&](int64_t, float value) { return d_.weight(value); });
  }

 private:
  LAMINA_DEVICE int64_t begin() const { return dev::warp() * part_ + dev::lane() * kChunk; }
  LAMINA_DEVICE int64_t end() const { return std::min(n_, (dev::warp() + 1) * part_); }
  LAMINA_DEVICE int count_at(int64_t j) const {
    return static_cast<int>(std::min<int64_t>(kChunk, n_ - j));
  }
  LAMINA_DEVICE Chunk load(int64_t j, int count) const {
    const T* const from[] = {x_ + j};
    Chunk chunk[1];
    load_runs(from, count, chunk);
    return chunk[0];
  }

  template <class Mass>
  LAMINA_DEVICE uint64_t total(const Mass& mass) const {
    uint64_t sum = 0;
    for_keys([&](int64_t, int32_t, float value) { sum += mass(value); });
    return sum_of_block(sum, smem_);
  }

  LAMINA_DEVICE int32_t first_of(int32_t largest) const {
    int32_t token = std::numeric_limits<int32_t>::max(), unused = 0;
    for_keys([&](int64_t j, int32_t key, float) {
      if (key == largest) token = std::min(token, static_cast<int32_t>(j));
    });
    extremes(token, unused, smem_);
    return token;
  }

  // The largest key t for which the keys >= t have a mass of at least `target`. The keys >= low have that mass. high:
  // the largest key of the row.
  template <class Mass>
  LAMINA_DEVICE int32_t threshold(uint64_t target, int32_t low, int32_t high,
                                  const Mass& mass) const {
    float distance = 3.0f;
    while (low < high) {
      const auto middle = static_cast<int32_t>(low + (int64_t{high} - low + 1) / 2);
      const int32_t falling =
          distance < kExpEnd ? key_of(d_.largest - distance / d_.inverse_temperature) : kLowest;
      distance *= 1.5f;
      const int32_t pivot = falling > low && falling <= high ? falling : middle;
      int32_t least = std::numeric_limits<int32_t>::max(), greatest = kLowest;
      uint64_t sum = 0;
      for_keys([&](int64_t, int32_t key, float value) {
        if (key >= pivot) {
          least = std::min(least, key);
          sum += mass(value);
        } else {
          greatest = std::max(greatest, key);
        }
      });
      sum = sum_of_block(sum, smem_);
      extremes(least, greatest, smem_);
      if (sum >= target) {
        low = least;
        distance = kExpEnd;  // the threshold is between the last two pivots
      } else {
        high = greatest;
      }
    }
    return low;
  }

  const int64_t n_, part_;
  RowSmem* const smem_;
  const T* x_ = nullptr;
  Distribution d_;
};

}  // namespace lamina::sample
