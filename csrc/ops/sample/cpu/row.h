// A row of logits on a CPU: its distribution and a draw from it. Loops over a block of 256 tokens are plain, and the
// compiler vectorises them with each ISA's flags.
//
// The first pass finds the largest key of every block. The threshold of top_k and top_p is then searched in a short
// list of candidates: the tokens at or above a cut, which are in few blocks. For top_k the cut is the k-th largest of
// the blocks' largest keys; with fewer blocks than k, the cut falls until k tokens are listed. Without top_k the cut
// falls until the candidates have the weight at which top_p stops, or until a token at the cut has less weight than
// min_p keeps. In the list the threshold is found digit by digit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "base/int_math.h"
#include "ops/sample/weights.h"

namespace lamina::sample {
namespace {

constexpr int64_t kBlock = 256;

// The first cut, in temperatures below the largest logit, and the factor to the next one.
constexpr float kFirstCut = 3.0f, kNextCut = 1.5f;

// The largest key t for which the keys >= t have a mass of at least `target`. mass(i): the mass of keys[i]. All keys
// together must have that mass.
template <class Mass>
int32_t threshold_of(const int32_t* keys, int64_t count, uint64_t target, const Mass& mass) {
  uint32_t prefix = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    uint64_t of_digit[256] = {};
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t key = static_cast<uint32_t>(keys[i]) ^ 0x80000000u;
      if (uint64_t{key} >> (shift + 8) == prefix) of_digit[(key >> shift) & 255u] += mass(i);
    }
    uint32_t digit = 255;
    for (; of_digit[digit] < target; --digit) target -= of_digit[digit];
    prefix = prefix << 8 | digit;
  }
  return static_cast<int32_t>(prefix ^ 0x80000000u);
}

template <class T>
class LogitRow {
 public:
  static constexpr int64_t scratch_bytes(int64_t vocab) {
    return ceil_div(vocab, kBlock) * 16 + vocab * 12 + 64;
  }

  // scratch: scratch_bytes(vocab), aligned to 8.
  LogitRow(int64_t vocab, void* scratch) : n_(vocab), blocks_(ceil_div(vocab, kBlock)) {
    block_sum_ = static_cast<uint64_t*>(scratch);
    weight_ = block_sum_ + blocks_;
    block_key_ = reinterpret_cast<int32_t*>(weight_ + n_);
    key_ = block_key_ + 2 * blocks_;
  }

  const Distribution& distribution() const { return d_; }
  float logit(int64_t j) const { return to_f32(x_[j]); }
  uint64_t weight(int64_t j) const {
    return d_.greedy >= 0 ? j == d_.greedy : d_.weight(to_f32(x_[j]));
  }

  Flag set(const T* x, const Settings& s) {
    x_ = x;
    d_ = {};
    has_block_sums_ = false;
    d_.flag = s.are_valid() ? find_keys() : Flag::kParameter;
    if (d_.flag != Flag::kNone) return d_.flag;
    if (s.temperature == 0.0f) {
      d_.greedy = first_of_largest();
      d_.total = 1;
      return d_.flag;
    }
    d_.largest = value_of(largest_);
    d_.inverse_temperature = s.inverse_temperature();
    const uint64_t least = s.least_weight();
    if (s.has_top_k(n_) || s.has_top_p() || least > 0) {
      find_threshold(s, least);
    } else {
      d_.total = sum_blocks();
      has_block_sums_ = true;
    }
    return d_.flag;
  }

  int32_t draw(uint64_t u) const {
    if (d_.greedy >= 0) return d_.greedy;
    uint64_t left = below(d_.total, u);
    for (int64_t b = 0;; ++b) {
      if (block_key_[b] < d_.threshold) continue;
      const uint64_t sum = has_block_sums_ ? block_sum_[b] : sum_block(b);
      if (left >= sum) {
        left -= sum;
        continue;
      }
      int64_t j = b * kBlock;
      for (uint64_t w = weight(j); left >= w; w = weight(++j)) left -= w;
      return static_cast<int32_t>(j);
    }
  }

 private:
  int64_t size_of(int64_t block) const { return std::min(kBlock, n_ - block * kBlock); }

  Flag find_keys() {
    largest_ = kLowest;
    int32_t smallest = std::numeric_limits<int32_t>::max();
    for (int64_t b = 0; b < blocks_; ++b) {
      const T* const x = x_ + b * kBlock;
      const int64_t count = size_of(b);
      int32_t high = kLowest;
      for (int64_t j = 0; j < count; ++j) {
        const int32_t key = key_of(to_f32(x[j]));
        high = std::max(high, key);
        smallest = std::min(smallest, key);
      }
      block_key_[b] = high;
      largest_ = std::max(largest_, high);
    }
    if (largest_ >= kInf || smallest < kMinusInf) return Flag::kNotFinite;
    return largest_ <= kMinusInf ? Flag::kNoToken : Flag::kNone;
  }

  int32_t first_of_largest() const {
    int64_t j = kBlock * (std::find(block_key_, block_key_ + blocks_, largest_) - block_key_);
    while (key_of(to_f32(x_[j])) != largest_) ++j;
    return static_cast<int32_t>(j);
  }

  uint64_t sum_block(int64_t b) const {
    const T* const x = x_ + b * kBlock;
    const int64_t count = size_of(b);
    const Distribution d = d_;
    uint64_t sum = 0;
    for (int64_t j = 0; j < count; ++j) sum += d.weight(to_f32(x[j]));
    return sum;
  }

  uint64_t sum_blocks() {
    uint64_t total = 0;
    for (int64_t b = 0; b < blocks_; ++b) total += block_sum_[b] = sum_block(b);
    return total;
  }

  // Makes the list of the tokens at or above the cut; returns the sum of their weights.
  uint64_t list(int32_t cut) {
    int32_t* const keys = key_;
    int64_t listed = 0;
    for (int64_t b = 0; b < blocks_; ++b) {
      if (block_key_[b] < cut) continue;
      const T* const x = x_ + b * kBlock;
      const int64_t count = size_of(b);
      for (int64_t j = 0; j < count; ++j) {
        const int32_t key = key_of(to_f32(x[j]));
        keys[listed] = key;
        listed += key >= cut;
      }
    }
    listed_ = listed;
    uint64_t* const weights = weight_;
    const float largest = d_.largest, inverse_temperature = d_.inverse_temperature;
    uint64_t sum = 0;
    for (int64_t i = 0; i < listed; ++i) {
      weights[i] = weight_of(largest - value_of(keys[i]), inverse_temperature);
      sum += weights[i];
    }
    return sum;
  }

  // Drops the listed tokens below the threshold; returns the sum of the weights of the others.
  uint64_t drop(int32_t threshold) {
    d_.threshold = threshold;
    int64_t kept = 0;
    uint64_t sum = 0;
    for (int64_t i = 0; i < listed_; ++i) {
      key_[kept] = key_[i];
      weight_[kept] = weight_[i];
      sum += key_[i] >= threshold ? weight_[i] : 0;
      kept += key_[i] >= threshold;
    }
    listed_ = kept;
    return sum;
  }

  // The key `distance` temperatures below the largest logit.
  int32_t cut_at(float distance) const {
    return distance > kExpEnd ? kLowest : key_of(d_.largest - distance / d_.inverse_temperature);
  }

  // The sum of the weights at or above the cut.
  uint64_t sum_from(int32_t cut) {
    d_.threshold = cut;
    uint64_t sum = 0;
    for (int64_t b = 0; b < blocks_; ++b) sum += block_key_[b] < cut ? 0 : sum_block(b);
    return sum;
  }

  // A cut with at least k tokens at or above it.
  int32_t cut_of_top_k(int64_t k) {
    if (k <= blocks_) return largest_key_of_blocks(k);
    for (float distance = kFirstCut;; distance *= kNextCut) {
      const int32_t cut = cut_at(distance);
      (void)list(cut);
      if (cut == kLowest || listed_ >= k) return cut;
    }
  }

  // A cut below which top_p and min_p keep no token. mass: at which top_p stops. least: the least weight that min_p
  // keeps.
  int32_t cut_of_mass(uint64_t mass, uint64_t least) {
    for (float distance = kFirstCut;; distance *= kNextCut) {
      const int32_t cut = cut_at(distance);
      if (cut == kLowest || weight_of(distance * 0.999f, 1.0f) < least || sum_from(cut) >= mass)
        return cut;
    }
  }

  void find_threshold(const Settings& s, uint64_t least) {
    const int64_t k = s.has_top_k(n_) ? s.top_k : 0;
    uint64_t mass = std::numeric_limits<uint64_t>::max();  // that top_p asks for
    if (k == 0 && s.has_top_p()) mass = s.mass_of_top_p(sum_blocks());
    d_.threshold = k > 0 ? cut_of_top_k(k) : cut_of_mass(mass, least);
    uint64_t sum = list(d_.threshold);
    if (k > 0)
      sum = drop(threshold_of(key_, listed_, static_cast<uint64_t>(k),
                              [](int64_t) { return uint64_t{1}; }));
    if (k > 0 && s.has_top_p()) mass = s.mass_of_top_p(sum);
    if (sum >= mass) drop(threshold_of(key_, listed_, mass, [&](int64_t i) { return weight_[i]; }));
    d_.least = least;
    for (int64_t i = 0; i < listed_; ++i) d_.total += weight_[i] >= least ? weight_[i] : 0;
  }

  int32_t largest_key_of_blocks(int64_t k) {
    int32_t* const keys = block_key_ + blocks_;
    std::copy_n(block_key_, blocks_, keys);
    // std::greater would make a weak function, which files of one ISA must not have.
    std::nth_element(keys, keys + k - 1, keys + blocks_,
                     [](int32_t a, int32_t b) { return a > b; });
    return keys[k - 1];
  }

  const int64_t n_, blocks_;
  const T* x_ = nullptr;
  Distribution d_;
  int32_t largest_ = kLowest;
  bool has_block_sums_ = false;
  uint64_t *block_sum_, *weight_;
  int32_t *block_key_, *key_;  // the largest key of each block; the list
  int64_t listed_ = 0;
};

}  // namespace
}  // namespace lamina::sample
