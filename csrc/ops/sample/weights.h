// The arithmetic of sampling, for every backend: integers, and f32 steps in a fixed order.
#pragma once

#include <bit>
#include <cfloat>
#include <cstdint>
#include <limits>

#include "base/numeric.h"
#include "base/philox.h"
#include "base/unroll.h"
#include "gemm/activation.h"
#include "ops/sample/sample.h"

namespace lamina::sample {

using U128 = unsigned __int128;

inline constexpr uint64_t kOne = uint64_t{1} << 40;  // the weight of the largest logit
inline constexpr float kLargestDraftProb = 1.0f + 0x1p-7f;

// A key is an integer that compares as its float does; -0 has the key of 0. A NaN is above +Inf or below -Inf.
LAMINA_INLINE constexpr int32_t key_of(float x) {
  const auto bits = std::bit_cast<int32_t>(x + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}
LAMINA_INLINE constexpr float value_of(int32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}
inline constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();
inline constexpr int32_t kMinusInf = key_of(-std::numeric_limits<float>::infinity());
inline constexpr int32_t kInf = key_of(std::numeric_limits<float>::infinity());

// x as an integer, to nearest even, for 0 <= x < 2^51: 2^52 leaves it in the low bits of the mantissa.
LAMINA_INLINE constexpr uint64_t rounded(float x) {
  constexpr double kRound = 0x1p52;
  return std::bit_cast<uint64_t>(static_cast<double>(x) + kRound) - std::bit_cast<uint64_t>(kRound);
}

// 2^40 exp(-z), rounded, for z = distance / temperature. Before rounding, the relative error is at most (3 z + 3)
// 2^-24.
LAMINA_INLINE constexpr uint64_t weight_of(float distance, float inverse_temperature) {
  const float z = magnitude(distance * inverse_temperature, kExpEnd);
  return rounded(exp_minus(z) * (static_cast<float>(kOne) / kExpUnit));
}
static_assert(weight_of(0.0f, 1.0f) == kOne && weight_of(200.0f, 1.0f) == 0);
static_assert(weight_of(std::numeric_limits<float>::infinity(), FLT_MIN) == 0);

// Streams of random numbers of one seed and offset: sample.h.
inline constexpr uint32_t kToken = 0, kAgainstDraft = 0xffffffffu;

// The first 64 bits of Philox.
LAMINA_INLINE constexpr uint64_t uniform(int64_t seed, int64_t offset, uint32_t stream) {
  const auto key = static_cast<uint64_t>(seed), at = static_cast<uint64_t>(offset);
  const Philox random =
      philox({{static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32), stream, 0}},
             static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32));
  return uint64_t{random.word[1]} << 32 | random.word[0];
}

// floor(u total / 2^64): below `total`, which is not 0.
LAMINA_INLINE constexpr uint64_t below(uint64_t total, uint64_t u) {
  return static_cast<uint64_t>(U128{u} * total >> 64);
}

LAMINA_INLINE constexpr int bit_width(U128 x) {
  const auto high = static_cast<uint64_t>(x >> 64);
  return static_cast<int>(high != 0 ? 64 + std::bit_width(high)
                                    : std::bit_width(static_cast<uint64_t>(x)));
}

// The parameters of a row, or of all rows of a request.
struct Settings {
  float temperature = 1.0f, top_p = 1.0f, min_p = 0.0f;
  int32_t top_k = 0;  // below 1: off
  int64_t seed = 0, offset = 0;

  constexpr bool are_valid() const {
    return temperature >= 0.0f && temperature <= FLT_MAX && top_p > 0.0f && top_p <= 1.0f &&
           min_p >= 0.0f && min_p <= 1.0f;
  }
  constexpr float inverse_temperature() const {
    const float inverse = 1.0f / temperature;
    return inverse > FLT_MAX ? FLT_MAX : inverse < FLT_MIN ? FLT_MIN : inverse;
  }
  constexpr bool has_top_k(int64_t vocab) const { return top_k >= 1 && top_k < vocab; }
  constexpr bool has_top_p() const { return top_p < 1.0f; }
  constexpr uint64_t least_weight() const {
    const float scaled = min_p * static_cast<float>(kOne);
    const auto whole = static_cast<uint64_t>(scaled);
    return whole + (static_cast<float>(whole) < scaled);
  }
  // The sum of weights at which top_p stops, out of `total`: at least 1. top_p is cut to a multiple of 2^-32.
  constexpr uint64_t mass_of_top_p(uint64_t total) const {
    const auto p = static_cast<uint64_t>(top_p * 0x1p32f);
    const auto mass = static_cast<uint64_t>((U128{total} * p + 0xffffffffu) >> 32);
    return mass < 1 ? 1 : mass;
  }
};

// load(pointer): the value there.
template <class Load>
LAMINA_INLINE constexpr Settings settings_of(const Target& target, int64_t i, const Load& load) {
  Settings s;
  const auto set = [&](auto& value, const auto& given) {
    if (given.is_given()) value = load(given.data + i * given.stride);
  };
  set(s.temperature, target.temperature);
  set(s.top_k, target.top_k);
  set(s.top_p, target.top_p);
  set(s.min_p, target.min_p);
  set(s.seed, target.seed);
  set(s.offset, target.offset);
  return s;
}

// The weights of a row that are kept, as a function of a token's logit.
struct Distribution {
  Flag flag = Flag::kNone;
  int32_t greedy = -1;  // the only token, if it is not -1; `total` is then 1
  float largest = 0.0f, inverse_temperature = 1.0f;
  int32_t threshold = kLowest;  // the least key that is kept
  uint64_t least = 0;           // the least weight that is kept
  uint64_t total = 0;

  LAMINA_INLINE constexpr uint64_t weight(float x) const {
    const uint64_t w = weight_of(largest - x, inverse_temperature);
    // Weights have 41 bits, and instruction sets compare signed integers.
    const bool is_kept = static_cast<int64_t>(w) >= static_cast<int64_t>(least);
    return key_of(x) >= threshold && is_kept ? w : 0;
  }
};

// Draft probabilities as weights. q: 0 to kLargestDraftProb.
LAMINA_INLINE constexpr bool is_draft_prob(float q) { return q >= 0.0f && q <= kLargestDraftProb; }
LAMINA_INLINE constexpr uint64_t draft_weight(float q) {
  return rounded(q * static_cast<float>(kOne));
}

// Whether a draft with the weights p of p_total and q of q_total is accepted: with probability
// min(1, (p / p_total) / (q / q_total)), but never if p is 0. The denominator keeps its 64 highest bits.
LAMINA_INLINE constexpr bool accepts(uint64_t p, uint64_t p_total, uint64_t q, uint64_t q_total,
                                     uint64_t u) {
  const U128 above = U128{p} * q_total, under = U128{q} * p_total;
  if (p == 0 || above >= under) return p != 0;
  const int excess = bit_width(under) - 64, shift = excess > 0 ? excess : 0;
  return below(static_cast<uint64_t>(under >> shift), u) < static_cast<uint64_t>(above >> shift);
}

// The weight of max(p / p_total - q / q_total, 0), times a factor that is the same for all tokens of a row and keeps
// the result at most p: all weights shrink by a factor above 1/2 and at most 1, and are rounded down.
LAMINA_INLINE constexpr uint64_t residual(uint64_t p, uint64_t p_total, uint64_t q,
                                          uint64_t q_total) {
  const U128 of_p = U128{p} * q_total, of_q = U128{q} * p_total;
  return of_p <= of_q ? 0 : static_cast<uint64_t>((of_p - of_q) >> std::bit_width(q_total - 1));
}
static_assert(residual(12, 16, 1, 2) == 4 && residual(12, 16, 0, 1) == 12 &&
              residual(4, 16, 1, 2) == 0);

}  // namespace lamina::sample
