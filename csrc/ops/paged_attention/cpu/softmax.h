// One row of one chunk: scores to weights, and partial results to results.
#pragma once

#include <algorithm>
#include <cmath>

#include "base/int_math.h"
#include "base/numeric.h"
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
  bool is_cut(int64_t j, int64_t count) const { return j < low || j + count > high; }
};

// kPlain: the row has only a scale.
template <class Simd, bool kPlain>
LAMINA_INLINE inline typename Simd::F score(const ScoreRow& row, int64_t j) {
  using F = typename Simd::F;
  F s = Simd::mul(Simd::load(row.scores + j), Simd::set(row.scale));
  if constexpr (kPlain) return s;
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

// Scores in place, and the largest of each lane. The loop over whole vectors has no branch.
template <class Simd, bool kPlain>
typename Simd::F score_row(const ScoreRow& row) {
  using F = typename Simd::F;
  constexpr int kLanes = Simd::kLanes;
  F highest = Simd::set(-kInfinity);
  const auto put = [&](int64_t j, F s) LAMINA_INLINE {
    Simd::store(row.scores + j, s);
    highest = Simd::max(s, highest);  // a NaN leaves `highest` as it is; its own weight is NaN
  };
  const auto put_cut = [&](int64_t from, int64_t to) {
    for (int64_t j = from; j < to; j += kLanes)
      put(j, Simd::keep_lanes(score<Simd, kPlain>(row, j), row.low - j, row.high - j, -kInfinity));
  };
  const int64_t whole = std::min(round_up(row.low, kLanes), row.end());
  const int64_t whole_end = std::max(row.high / kLanes * kLanes, whole);
  put_cut(row.begin(), whole);
  for (int64_t j = whole; j < whole_end; j += kLanes) put(j, score<Simd, kPlain>(row, j));
  put_cut(whole_end, row.end());
  return highest;
}

// Scores to weights relative to `maximum`, in place; returns their sum. Sixteen running sums, one for each column modulo
// 16, are added in order whatever the width of a vector. kScaled: the sum is of the weights before value_scale.
template <class Simd, bool kScaled>
float weigh_row(const ScoreRow& row, float maximum) {
  using F = typename Simd::F;
  constexpr int kLanes = Simd::kLanes, kSums = 16;
  const F reference = Simd::set(maximum == -kInfinity ? 0.0f : maximum);
  F sums[kSums / kLanes];
  for (F& each : sums) each = Simd::set(0.0f);
  for (int64_t j = row.begin(); j < row.end(); j += kSums)
    unroll<kSums / kLanes>([&](auto v) LAMINA_INLINE {
      const int64_t at = j + v * kLanes;
      F w = exp<Simd>(Simd::sub(Simd::load(row.scores + at), reference));
      sums[v] = Simd::add(sums[v], w);
      if constexpr (kScaled) {
        w = Simd::mul(w, Simd::load(row.value_scale + at));
        if (row.is_cut(at, kLanes)) w = Simd::keep_lanes(w, row.low - at, row.high - at, 0.0f);
      }
      Simd::store(row.scores + at, w);
    });
  alignas(64) float lanes[kSums];
  for (int v = 0; v < kSums / kLanes; ++v) Simd::store(lanes + v * kLanes, sums[v]);
  float sum = 0.0f;
  for (float each : lanes) sum += each;
  return sum;
}

template <class Simd>
void softmax_row(const ScoreRow& row, float& maximum, float& sum) {
  const bool is_plain = row.key_scale == nullptr && row.softcap == 0.0f && row.slope == 0.0f;
  alignas(64) float lanes[Simd::kLanes];
  Simd::store(lanes, is_plain ? score_row<Simd, true>(row) : score_row<Simd, false>(row));
  maximum = *std::max_element(lanes, lanes + Simd::kLanes);
  sum = row.value_scale == nullptr ? weigh_row<Simd, false>(row, maximum)
                                   : weigh_row<Simd, true>(row, maximum);
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

// The vector times `factor`, by the sum of weights and exp(sink).
template <class Simd>
void divide(const State& result, float sink, float factor) {
  using F = typename Simd::F;
  const float maximum = std::max(result.maximum(), sink);
  const float reference = maximum == -kInfinity ? 0.0f : maximum;
  const float keep = exp_of<Simd>(result.maximum() - reference);
  const float total = std::fma(result.sum(), keep, exp_of<Simd>(sink - reference));
  // The addition makes every zero +0: a chunk of which a row sees nothing would change the sign.
  for (int64_t i = 0; i < result.dim; i += Simd::kLanes) {
    const F scaled =
        Simd::fma(Simd::load(result.vector() + i), Simd::set(keep * factor), Simd::set(0.0f));
    Simd::store(result.vector() + i, Simd::div(scaled, Simd::set(total)));
  }
}

template <class T>
void store(const State& result, T* to, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) to[i] = from_f32<T>(result.vector()[i]);
}

}  // namespace
}  // namespace lamina::paged_attention
