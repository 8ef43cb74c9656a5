// One row of one chunk: scores to weights, and partial results to results.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "base/int_math.h"
#include "base/numeric.h"
#include "ops/paged_attention/cpu/exp.h"
#include "ops/paged_attention/plan.h"

namespace lamina::paged_attention {
namespace {

// A result over some keys: sum_j w[j] v[j], sum_j w[j], and the score from which the weights count, in units of log 2.
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

// The numbers of a row, which a factor makes scores:
//   kRaw     dot products as they are
//   kLinear  dot products times the scales of keys
//   kFull    scores
// The factor is positive, so that the largest number has the largest score, and far from the ends of f32.
enum class Scores { kRaw, kLinear, kFull };

inline bool is_linear(const ScoreRow& row) {
  return row.softcap == 0.0f && row.slope == 0.0f && row.scale > 0x1p-100f && row.scale < 0x1p100f;
}

template <class Simd, Scores kScores>
LAMINA_INLINE inline typename Simd::F score(const ScoreRow& row, typename Simd::F s, int64_t j) {
  using F = typename Simd::F;
  if constexpr (kScores == Scores::kRaw) return s;
  if constexpr (kScores == Scores::kFull) s = Simd::mul(s, Simd::set(row.scale));
  if (row.key_scale != nullptr) s = Simd::mul(s, Simd::load(row.key_scale + j));
  if constexpr (kScores == Scores::kLinear) return s;
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

// Combines kCount numbers in the order of a tree: those of the second half with those of the first.
template <int kCount, class Combine>
LAMINA_INLINE inline float reduce(const float* lanes, const Combine& combine) {
  typedef float Quad __attribute__((vector_size(16)));
  Quad x[kCount / 4];
  std::memcpy(x, lanes, sizeof(x));
  for (int half = kCount / 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] = combine(x[i], x[i + half]);
  return combine(combine(x[0][0], x[0][2]), combine(x[0][1], x[0][3]));
}

// Scores in place; returns the largest. dots(j): dot products from column j on. The loop over whole vectors has no branch.
template <class Simd, Scores kScores, class Dots>
float largest_score(const ScoreRow& row, const Dots& dots) {
  using F = typename Simd::F;
  constexpr int kLanes = Simd::kLanes, kSteps = kAlign / kLanes;
  F highest[kSteps];
  for (F& each : highest) each = Simd::set(-kInfinity);
  const auto see = [&](F s, int step) LAMINA_INLINE {
    highest[step] = Simd::max(s, highest[step]);  // a NaN leaves it as it is; its own weight is NaN
  };
  const auto cut = [&](int64_t from, int64_t to) {
    for (int64_t j = from; j < to; j += kLanes) {
      const F s = score<Simd, kScores>(row, dots(j), j);
      const F kept = Simd::keep_lanes(s, row.low - j, row.high - j, -kInfinity);
      Simd::store(row.scores + j, kept);
      see(kept, 0);
    }
  };
  const int64_t whole = std::min(round_up(row.low, kAlign), row.end());
  const int64_t whole_end = std::max(row.high / kAlign * kAlign, whole);
  cut(row.begin(), whole);
  for (int64_t j = whole; j < whole_end; j += kAlign)
    unroll<kSteps>([&](auto i) LAMINA_INLINE {
      const int64_t at = j + i * kLanes;
      const F s = score<Simd, kScores>(row, dots(at), at);
      if constexpr (kScores != Scores::kRaw) Simd::store(row.scores + at, s);
      see(s, i);
    });
  cut(whole_end, row.end());
  alignas(64) float lanes[kAlign];
  for (int i = 0; i < kSteps; ++i) Simd::store(lanes + i * kLanes, highest[i]);
  return reduce<kAlign>(lanes, [](auto a, auto b) { return a > b ? a : b; });
}

// The numbers of a row times this factor are its scores, in units of log 2.
inline float factor_of(const ScoreRow& row) { return is_linear(row) ? row.scale * kLog2E : kLog2E; }

// dots(j): dot products from column j on. kAreRaw: they are row.scores.
template <class Simd, bool kAreRaw, class Dots>
float largest_score(const ScoreRow& row, const Dots& dots) {
  if (!is_linear(row)) return largest_score<Simd, Scores::kFull>(row, dots);
  if (kAreRaw && row.key_scale == nullptr) return largest_score<Simd, Scores::kRaw>(row, dots);
  return largest_score<Simd, Scores::kLinear>(row, dots);
}

// Calls put(j, weights of kAlign columns from j on), relative to the number `highest`; returns their sum. Sixteen running sums, one
// for each column modulo 16, are added in one order whatever the width of a vector. kScaled: the sum is of the weights
// before value_scale.
template <class Simd, bool kScaled, class Put>
float weigh_row(const ScoreRow& row, float highest, const Put& put) {
  using F = typename Simd::F;
  constexpr int kLanes = Simd::kLanes, kSums = 16, kSteps = kAlign / kLanes;
  const F reference = Simd::set(highest == -kInfinity ? 0.0f : highest);
  const F factor = Simd::set(factor_of(row)), least = Simd::set(-126.0f / factor_of(row));
  F sums[kSums / kLanes];
  for (F& each : sums) each = Simd::set(0.0f);
  for (int64_t j = row.begin(); j < row.end(); j += kAlign) {
    F weights[kSteps];
    unroll<kSteps>([&](auto i) LAMINA_INLINE {
      const int64_t at = j + i * kLanes;
      F& w = weights[i];
      w = exp2<Simd>(Simd::sub(Simd::load(row.scores + at), reference), factor, least);
      F& sum = sums[i % (kSums / kLanes)];
      sum = Simd::add(sum, w);
      if constexpr (kScaled) {
        // No weight is -0.
        w = Simd::fma(w, Simd::load(row.value_scale + at), Simd::set(0.0f));
        if (row.is_cut(at, kLanes)) w = Simd::keep_lanes(w, row.low - at, row.high - at, 0.0f);
      }
    });
    put(j, weights);
  }
  alignas(64) float lanes[kSums];
  for (int v = 0; v < kSums / kLanes; ++v) Simd::store(lanes + v * kLanes, sums[v]);
  return reduce<kSums>(lanes, [](auto a, auto b) { return a + b; });
}

template <class Simd, class Put>
float weigh_row(const ScoreRow& row, float highest, const Put& put) {
  return row.value_scale == nullptr ? weigh_row<Simd, false>(row, highest, put)
                                    : weigh_row<Simd, true>(row, highest, put);
}

// into = into and `next`, whose keys come after those of into. A state without keys has maximum -inf and zeros.
template <class Simd>
void merge(const State& into, const State& next) {
  using F = typename Simd::F;
  const float maximum = std::max(into.maximum(), next.maximum());
  const float reference = maximum == -kInfinity ? 0.0f : maximum;
  const float keep = exp2_of<Simd>(into.maximum() - reference);
  const float add = exp2_of<Simd>(next.maximum() - reference);
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
  const double own = double{result.maximum()}, other = double{sink} / std::numbers::ln2;
  const double maximum = std::max(own, other);
  const double reference = maximum == -kInfinity ? 0.0 : maximum;
  const float keep = exp2_of<Simd>(static_cast<float>(own - reference));
  const float rest = exp2_of<Simd>(static_cast<float>(other - reference));
  const float total = std::fma(result.sum(), keep, rest);
  // The addition makes every zero +0: a chunk of which a row sees nothing would change the sign.
  for (int64_t i = 0; i < result.dim; i += Simd::kLanes) {
    const F scaled =
        Simd::fma(Simd::load(result.vector() + i), Simd::set(keep * factor), Simd::set(0.0f));
    Simd::store(result.vector() + i, Simd::div(scaled, Simd::set(total)));
  }
}

inline float lse_of(const State& result) {
  return static_cast<float>(double{result.maximum()} * std::numbers::ln2 +
                            std::log(static_cast<double>(result.sum())));
}

template <class T>
void store(const float* from, T* to, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) to[i] = from_f32<T>(from[i]);
}

}  // namespace
}  // namespace lamina::paged_attention
