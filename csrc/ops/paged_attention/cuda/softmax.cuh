// Scores of a block of columns to weights. A score counts in units of log2, so that its weight is a power of 2.
//
// Scores need a transformation where there is a softcap, a bias or a scale of each key; else their common factor is
// applied together with the maximum, in one fused operation.
#pragma once

#include <cfloat>
#include <cmath>

#include "ops/paged_attention/cuda/products.cuh"
#include "ops/paged_attention/cuda/rows.cuh"

namespace lamina::paged_attention {

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The rule by which a call makes scores, the same in all threads.
struct ScoreRule {
  float scale;    // of dot products, with the scale of a whole cache of keys
  float factor;   // of dot products that need no transformation
  bool is_plain;  // whether they need none

  // Caches of 16 bits have no scales.
  template <class Shape>
  LAMINA_DEVICE static ScoreRule of(const Params& p) {
    ScoreRule rule{p.scale * kUnit<Shape::kElements, typename Shape::T>, 1.0f, false};
    const bool has_scales = Shape::kIsQuantized && p.k_scale.is_per_token();
    if constexpr (Shape::kIsQuantized)
      if (p.k_scale.is_given() && !has_scales)
        rule.scale = rule.scale * dev::load_global(p.k_scale.data);
    const float factor = rule.scale * kLog2E;
    // A maximum of products is the product of the maximum only for positive factors.
    rule.is_plain = p.softcap == 0.0f && p.alibi_slopes == nullptr && !has_scales &&
                    factor >= FLT_MIN && factor <= FLT_MAX;
    if (rule.is_plain) rule.factor = factor;
    return rule;
  }
};

template <class Shape>
struct Softmax {
  using State = typename Shape::State;
  using Scores = typename Products<Shape>::Scores;
  using Weights = typename Products<Shape>::Weights;
  using Rows = TileRows<Shape>;
  using W = typename Shape::W;

  // The column of the block that this lane holds in element e of tile n of the scores.
  LAMINA_DEVICE static int column_of(int n, int e) {
    return Shape::warp_n() * (kColumns / Shape::kWarpsN) + n * 8 + dev::lane() % 4 * 2 + e % 2;
  }

  LAMINA_DEVICE static float tanh(float x) {
    const float t = dev::exp2_approx(std::abs(x) * (-2.0f * kLog2E));
    return std::copysign((1.0f - t) / (1.0f + t), x);
  }

  // Calls f(n, e, column) for the columns of this lane.
  LAMINA_DEVICE static void for_columns(const auto& f) {
#pragma unroll
    for (int n = 0; n < Shape::kTilesColumn; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) f(n, e, column_of(n, e));
  }
  // Calls f(t, half, score) for the scores in this lane of column e of tile n.
  LAMINA_DEVICE static void for_rows(Scores& scores, int n, int e, const auto& f) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) f(t, half, scores[t][n][half * 2 + e]);
  }

  // scales: the place of the scales of the block of columns.
  LAMINA_DEVICE static void transform(const KernelArgs& args, const ScoreRule& rule,
                                      const Walk<Shape>& walk, int scales, Scores& scores) {
    const Params& p = args.p;
    const float scale = p.softcap == 0.0f ? rule.scale * kLog2E : rule.scale;
    const bool has_scales = Shape::kIsQuantized && p.k_scale.is_per_token();
    for_columns([&](int n, int e, int column) {
      float of_column = scale;
      if constexpr (Shape::kIsQuantized)
        if (has_scales) of_column = scale * dev::load_shared(Shape::scales(scales, false) + column);
      for_rows(scores, n, e, [&](int, int, float& score) { score = score * of_column; });
    });
    if (p.softcap != 0.0f)
      for_columns([&](int n, int e, int) {
        for_rows(scores, n, e, [&](int, int, float& score) {
          score = tanh(score / p.softcap) * (p.softcap * kLog2E);
        });
      });
    if (p.alibi_slopes != nullptr) add_biases(walk, scores);
  }

  LAMINA_DEVICE static void add_biases(const Walk<Shape>& walk, Scores& scores) {
    const int32_t prefix = Shape::at(&Place::prefix), nodes = Shape::at(&Tile::tree_len);
    for_columns([&](int n, int e, int column) {
      // For plain tokens a key has the position of its slot; for nodes another node has its own.
      const int32_t slot_position = walk.first_column() + column - prefix;
      int32_t node_position = slot_position;
      if (slot_position >= 0 && slot_position < nodes)
        node_position = dev::load_shared(Shape::positions(walk.index()) + column);
      for_rows(scores, n, e, [&](int t, int half, float& score) {
        const int row = Shape::row_of(t, half);
        const int32_t own = Rows::info(row, RowMember::kPosition);
        const int32_t position =
            Rows::info(row, RowMember::kToken) < 0 ? slot_position : node_position;
        const uint32_t distance =
            own > position ? static_cast<uint32_t>(own) - static_cast<uint32_t>(position)
                           : static_cast<uint32_t>(position) - static_cast<uint32_t>(own);
        score = std::fma(-std::bit_cast<float>(Rows::info(row, RowMember::kSlope)),
                         static_cast<float>(distance), score);
      });
    });
  }

  // Scores that a row does not see become -inf.
  LAMINA_DEVICE static void mask(const KernelArgs& args, const Walk<Shape>& walk, Scores& scores) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint64_t seen = Rows::seen(args, Shape::row_of(t, half), walk) >> column_of(0, 0);
#pragma unroll
        for (int n = 0; n < Shape::kTilesColumn; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (!(seen >> (n * 8 + e) & 1)) scores[t][n][half * 2 + e] = -kInfinity;
      }
  }

  // The largest score of each row among the columns of this warp, which other warps of the row find in shared memory after a
  // barrier.
  LAMINA_DEVICE static void find_maxima(const Scores& scores, float (&maxima)[Shape::kTilesM][2]) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float largest = -kInfinity;
#pragma unroll
        for (int n = 0; n < Shape::kTilesColumn; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) largest = dev::f32_max(largest, scores[t][n][half * 2 + e]);
        largest = dev::f32_max(largest, dev::shuffle_xor(largest, 1));
        largest = dev::f32_max(largest, dev::shuffle_xor(largest, 2));
        if constexpr (Shape::kWarpsN > 1)
          if (dev::lane() % 4 == 0) dev::store_shared(maximum(Shape::warp_n(), t, half), largest);
        maxima[t][half] = largest;
      }
  }
  // Those of all columns, after the barrier.
  LAMINA_DEVICE static void find_maxima_of_warps(float (&maxima)[Shape::kTilesM][2]) {
    if constexpr (Shape::kWarpsN > 1)
#pragma unroll
      for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int w = 0; w < Shape::kWarpsN; ++w)
            maxima[t][half] = dev::f32_max(maxima[t][half], dev::load_shared(maximum(w, t, half)));
  }
  LAMINA_DEVICE static float* maximum(int warp_n, int t, int half) {
    return reinterpret_cast<float*>(Shape::smem(Shape::kMaximaAt)) + warp_n * Shape::kRows +
           Shape::row_of(t, half);
  }

  // The factors by which the sums of rows change because their exponents do.
  struct Growth {
    float of[Shape::kTilesM][2];
    bool is_needed;  // by any row of the warp
  };

  // Raises the exponents of the state to those of the maxima.
  LAMINA_DEVICE static Growth raise_exponents(const float (&maxima)[Shape::kTilesM][2],
                                              float factor, State& state) {
    Growth growth;
    bool has_changed = false;
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& exponent = state.exponent[t][half];
        const float next =
            dev::f32_max(exponent, maxima[t][half] * factor - Half<W>::kWeightExponent);
        has_changed = has_changed || next != exponent;
        growth.of[t][half] = dev::exp2_approx(exponent - finite(next));
        exponent = next;
      }
    growth.is_needed = dev::any(has_changed);
    return growth;
  }

  LAMINA_DEVICE static void grow_weights(const Growth& growth, State& state) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) state.weights[t][e] = state.weights[t][e] * growth.of[t][e / 2];
  }
  LAMINA_DEVICE static void grow_values(const Growth& growth, State& state) {
#pragma unroll
    for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
      for (int n = 0; n < Shape::kTilesElement; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          state.values[t][n][e] = state.values[t][n][e] * growth.of[t][e / 2];
  }

  // Raises the exponents of the state to those of the maxima, and scales the state where one has changed.
  LAMINA_DEVICE static void raise(const float (&maxima)[Shape::kTilesM][2], float factor,
                                  State& state) {
    const Growth growth = raise_exponents(maxima, factor, state);
    if (!growth.is_needed) return;
    grow_weights(growth, state);
    grow_values(growth, state);
  }

  // An exponent that can be subtracted: 0 for a row that has seen nothing yet.
  LAMINA_DEVICE static float finite(float exponent) {
    return exponent == -kInfinity ? 0.0f : exponent;
  }

  // scaled: the weights times the scales of the columns' values, if there is a scale for each column. A column that
  // a row does not see may have any scale, and so may one whose score is -inf.
  LAMINA_DEVICE static void weigh(const Scores& scores, float factor, const State& state, int stage,
                                  bool has_scales, Weights& weights, Weights& scaled) {
    if constexpr (Shape::kIsQuantized)
      if (has_scales) return weigh_all<true>(scores, factor, state, stage, weights, scaled);
    weigh_all<false>(scores, factor, state, stage, weights, scaled);
  }

 private:
  template <bool kHasScales>
  LAMINA_DEVICE static void weigh_all(const Scores& scores, float factor, const State& state,
                                      int stage, Weights& weights, Weights& scaled) {
#pragma unroll
    for (int n = 0; n < Shape::kTilesColumn; ++n) {
      float scale[2];
      if constexpr (kHasScales)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          scale[e] = dev::load_shared(Shape::scales(stage, true) + column_of(n, e));
#pragma unroll
      for (int t = 0; t < Shape::kTilesM; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float exponent = -finite(state.exponent[t][half]);
          const float low = scores[t][n][half * 2], high = scores[t][n][half * 2 + 1];
          const float low_weight = dev::exp2_approx(std::fma(low, factor, exponent));
          const float high_weight = dev::exp2_approx(std::fma(high, factor, exponent));
          const int to = n % 2 * 2 + half;
          weights[t][n / 2][to] = Half<W>::pack(low_weight, high_weight);
          if constexpr (kHasScales)
            scaled[t][n / 2][to] =
                Half<W>::pack(low == -kInfinity ? 0.0f : low_weight * scale[0],
                              high == -kInfinity ? 0.0f : high_weight * scale[1]);
        }
    }
  }
};

}  // namespace lamina::paged_attention
