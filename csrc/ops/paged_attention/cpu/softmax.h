// One row of one chunk: scores to weights, and partial results to results.
#pragma once

#include <algorithm>
#include <cmath>

#include "base/int_math.h"
#include "ops/paged_attention/cpu/exp.h"
#include "ops/paged_attention/plan.h"

namespace lamina::paged_attention {
namespace {

// A result over some keys: sum_j w[j] v[j], sum_j w[j], and the score from which the weights count.
struct State {
  float* values;
  int64_t dim;

  static constexpr int64_t kHead = 16;  // keeps the vector aligned
  float& maximum() const { return values[0]; }
  float& sum() const { return values[1]; }
  float* vector() const { return values + kHead; }
};

struct ScoreRow {
  float* scores;      // [kChunk], in place: dot products in, weights out
  int64_t low, high;  // the columns seen; others get weight 0
  float scale;
  float softcap;
  float slope;             // of ALiBi; 0: none
  float position;          // of the token, from the first column
  const float* positions;  // of the keys, from the first column; with slope
  const float* key_scale;  // a column each, or nullptr
  const float* value_scale;

  // Weights are defined from begin() to end() - 1.
  int64_t begin() const { return low / kAlign * kAlign; }
  int64_t end() const { return round_up(high, kAlign); }
};

template <class Simd>
LAMINA_INLINE inline typename Simd::F score(const ScoreRow& row, int64_t j) {
  using F = typename Simd::F;
  F s = Simd::mul(Simd::load(row.scores + j), Simd::set(row.scale));
  if (row.key_scale != nullptr) s = Simd::mul(s, Simd::load(row.key_scale + j));
  if (row.softcap != 0.0f)
    s = Simd::mul(tanh<Simd>(Simd::div(s, Simd::set(row.softcap))), Simd::set(row.softcap));
  if (row.slope != 0.0f) {
    const F distance = Simd::sub(Simd::set(row.position), Simd::load(row.positions + j));
    const F magnitude =
        Simd::as_float(Simd::bit_and(Simd::as_int(distance), Simd::set_int(0x7fffffff)));
    s = Simd::fma(Simd::set(-row.slope), magnitude, s);
  }
  return s;
}

// Weights relative to the row's maximum, in place. Sixteen running sums, one for each column modulo 16, are added in
// order whatever the width of a vector. The sum is of the weights before they are multiplied by value_scale.
template <class Simd>
void softmax_row(const ScoreRow& row, float& maximum, float& sum) {
  using F = typename Simd::F;
  constexpr int kLanes = Simd::kLanes, kSums = 16;
  const auto is_cut = [&](int64_t j) { return j < row.low || j + kLanes > row.high; };
  F highest = Simd::set(-kInfinity);
  for (int64_t j = row.begin(); j < row.end(); j += kLanes) {
    F s = score<Simd>(row, j);
    if (is_cut(j)) s = Simd::keep_lanes(s, row.low - j, row.high - j, -kInfinity);
    Simd::store(row.scores + j, s);
    highest = Simd::max(s, highest);  // a NaN leaves `highest` as it is, and makes its own weight NaN
  }
  alignas(64) float lanes[kSums];
  Simd::store(lanes, highest);
  maximum = *std::max_element(lanes, lanes + kLanes);
  const F reference = Simd::set(maximum == -kInfinity ? 0.0f : maximum);
  F sums[kSums / kLanes];
  for (F& each : sums) each = Simd::set(0.0f);
  for (int64_t j = row.begin(); j < row.end(); j += kSums)
    for (int v = 0; v < kSums / kLanes; ++v) {
      const int64_t at = j + v * kLanes;
      F w = exp<Simd>(Simd::sub(Simd::load(row.scores + at), reference));
      sums[v] = Simd::add(sums[v], w);
      if (row.value_scale != nullptr) {
        w = Simd::mul(w, Simd::load(row.value_scale + at));
        if (is_cut(at)) w = Simd::keep_lanes(w, row.low - at, row.high - at, 0.0f);
      }
      Simd::store(row.scores + at, w);
    }
  for (int v = 0; v < kSums / kLanes; ++v) Simd::store(lanes + v * kLanes, sums[v]);
  sum = 0.0f;
  for (float each : lanes) sum += each;
}

// into = into and `next`, whose keys come after those of into. A state without keys has maximum -inf and zeros.
template <class Simd>
void merge(const State& into, const State& next) {
  using F = typename Simd::F;
  const float maximum = std::max(into.maximum(), next.maximum());
  const float reference = maximum == -kInfinity ? 0.0f : maximum;
  const float keep = exp_of<Simd>(into.maximum() - reference);
  const float add = exp_of<Simd>(next.maximum() - reference);
  for (int64_t i = 0; i < into.dim; i += Simd::kLanes) {
    const F kept = Simd::mul(Simd::load(into.vector() + i), Simd::set(keep));
    Simd::store(into.vector() + i, Simd::fma(Simd::load(next.vector() + i), Simd::set(add), kept));
  }
  into.sum() = std::fma(next.sum(), add, into.sum() * keep);
  into.maximum() = maximum;
}

}  // namespace
}  // namespace lamina::paged_attention
