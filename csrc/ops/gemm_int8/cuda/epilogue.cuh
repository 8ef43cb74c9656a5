// What follows the sums on a GPU: the formula of ../epilogue.h for neighbouring columns of a row. P: the Params of a
// product, an Output with a `problem`.
#pragma once

#include <bit>
#include <type_traits>

#include "device/device.h"
#include "ops/gemm_int8/epilogue.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

// Neighbours in a row as the words that store them.
template <class T, int kCount>
struct Run {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * kCount;
  using Word =
      std::conditional_t<kBytes % 16 == 0, dev::U32x4,
                         std::conditional_t<kBytes == 8, dev::U32x2,
                                            std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;
  static constexpr int kWords = kBytes / static_cast<int>(sizeof(Word));
  static_assert(kWords * static_cast<int>(sizeof(Word)) == kBytes);

  T value[kCount];
};

// At each `from` the first `count` >= 1 of a run, then the first again; in whole words where they are all there and every
// `from` allows them. The loads are under way together.
template <class T, int kCount, int kRuns>
LAMINA_DEVICE void load_runs(const T* const (&from)[kRuns], int64_t count,
                             Run<T, kCount> (&runs)[kRuns]) {
  using Word = typename Run<T, kCount>::Word;
  struct Words {
    Word word[Run<T, kCount>::kWords];
  };
  uintptr_t low = 0;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) low |= reinterpret_cast<uintptr_t>(from[r]);
  if (count >= kCount && low % sizeof(Word) == 0) {
    Words words[kRuns];
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
#pragma unroll
      for (int v = 0; v < Run<T, kCount>::kWords; ++v)
        words[r].word[v] = dev::load_global(reinterpret_cast<const Word*>(from[r]) + v);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) runs[r] = std::bit_cast<Run<T, kCount>>(words[r]);
  } else {
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
#pragma unroll
      for (int e = 0; e < kCount; ++e)
        runs[r].value[e] = dev::load_global(from[r] + (e < count ? e : 0));
  }
}

// The first `count` of a run; in whole words where all of it is stored and `to` allows them.
template <class T, int kCount>
LAMINA_DEVICE void store_run(T* to, const Run<T, kCount>& run, int64_t count) {
  using Word = typename Run<T, kCount>::Word;
  struct Words {
    Word word[Run<T, kCount>::kWords];
  };
  if (count >= kCount && reinterpret_cast<uintptr_t>(to) % sizeof(Word) == 0) {
    const Words words = std::bit_cast<Words>(run);
#pragma unroll
    for (int v = 0; v < Run<T, kCount>::kWords; ++v)
      dev::store_global(reinterpret_cast<Word*>(to) + v, words.word[v]);
  } else {
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      if (e < count) dev::store_global(to + e, run.value[e]);
  }
}

LAMINA_DEVICE float load_bias(const Output& p, int64_t j) {
  if (p.bias == nullptr) return kNoBias;
  if (p.bias_dtype == DType::kF32) return static_cast<const float*>(p.bias)[j];
  if (p.bias_dtype == DType::kF16) return to_f32(static_cast<const F16*>(p.bias)[j]);
  return to_f32(static_cast<const BF16*>(p.bias)[j]);
}

// What the epilogue needs of kCount columns from j0 < n; those from n on repeat the first.
template <int kCount>
struct Columns {
  int64_t j0, left;  // left: columns up to n
  int32_t w_sum[kCount];
  float w_scale[kCount], bias[kCount];

  template <class P>
  LAMINA_DEVICE Columns(const P& p, int64_t first) : j0(first), left(p.problem.n - first) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const int64_t j = j0 + (e < left ? e : 0);
      w_sum[e] = 0;
      w_scale[e] = 1.0f;
      if constexpr (std::is_same_v<P, Params>) {  // others scale their sums themselves
        if (p.a_zero_point.is_given() && !p.problem.is_grouped) w_sum[e] = p.w_sums[j];
        if (!p.problem.is_grouped) w_scale[e] = p.w_scale[j];
      }
      bias[e] = load_bias(p, j);
    }
  }
};

// What the epilogue needs of a row without scales along k.
struct RowScale {
  float a_scale;
  int32_t zero_point;

  LAMINA_DEVICE static RowScale of(const Params& p, int64_t i) {
    return {p.a_scale[i], p.a_zero_point.is_given() ? p.a_zero_point[i] : 0};
  }
};

// From the sums of a * w, in f32 if they are scaled, which need no RowScale.
template <class Acc, int kCount>
LAMINA_DEVICE void scale_row(const Acc (&acc)[kCount], const RowScale& row,
                             const Columns<kCount>& columns, float (&value)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    if constexpr (std::is_same_v<Acc, float>) {
      value[e] = acc[e] + columns.bias[e];
    } else {
      value[e] = scale(correct(acc[e], row.zero_point, columns.w_sum[e]), row.a_scale,
                       columns.w_scale[e], columns.bias[e]);
    }
  }
}

// From sums in f32 that only lack the scale of their row.
template <int kCount>
LAMINA_DEVICE void scale_token(const float (&sums)[kCount], float token_scale,
                               const Columns<kCount>& columns, float (&value)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; ++e) value[e] = sums[e] * token_scale + columns.bias[e];
}

// One instruction where from_f32 has a dozen; the same values.
template <class Out>
LAMINA_DEVICE Out round_to(float value) {
  if constexpr (std::is_same_v<Out, F16>) {
    return {dev::f32_to_f16(value)};
  } else if constexpr (std::is_same_v<Out, BF16>) {
    return {dev::f32_to_bf16(value)};
  } else {
    return value;
  }
}

template <class Out, int kCount>
LAMINA_DEVICE Run<Out, kCount> round_run(const float (&value)[kCount]) {
  Run<Out, kCount> run;
#pragma unroll
  for (int e = 0; e < kCount; ++e) run.value[e] = round_to<Out>(value[e]);
  return run;
}

// All values, a few at a time: the code of an activation is long, and a kernel stores rows in many
// places. The values move through the registers that are worked on, for registers have no index.
template <Activation kActivation, int kCount>
LAMINA_DEVICE void activate_all(float (&value)[kCount]) {
  constexpr int kAtOnce = kCount % 4 == 0 ? 4 : kCount % 2 == 0 ? 2 : 1;
#pragma unroll 1
  for (int step = 0; step < kCount / kAtOnce; ++step) {
    float done[kAtOnce];
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) done[e] = activate<kActivation>(value[e]);
#pragma unroll
    for (int e = 0; e < kCount - kAtOnce; ++e) value[e] = value[e + kAtOnce];
#pragma unroll
    for (int e = 0; e < kAtOnce; ++e) value[kCount - kAtOnce + e] = done[e];
  }
}

// combine(value, element of the operand in f32), for the columns of each row in turn.
template <class T, int kRows, int kCount, class Combine>
LAMINA_DEVICE void combine_as(const Operand& operand, const int64_t (&rows)[kRows],
                              const Columns<kCount>& columns, float (&value)[kRows * kCount],
                              const Combine& combine) {
  const T* from[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    from[r] = static_cast<const T*>(operand.data) + rows[r] * operand.stride + columns.j0;
  Run<T, kCount> runs[kRows];
  load_runs(from, columns.left, runs);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      value[r * kCount + e] = combine(value[r * kCount + e], to_f32(runs[r].value[e]));
}

template <int kRows, int kCount, class Combine>
LAMINA_DEVICE void combine_all(const Operand& operand, const int64_t (&rows)[kRows],
                               const Columns<kCount>& columns, float (&value)[kRows * kCount],
                               const Combine& combine) {
  if (!operand.is_given()) return;
  if (operand.dtype == DType::kF32)
    return combine_as<float>(operand, rows, columns, value, combine);
  if (operand.dtype == DType::kF16) return combine_as<F16>(operand, rows, columns, value, combine);
  combine_as<BF16>(operand, rows, columns, value, combine);
}

// The steps between bias and rounding, for the columns of each row in turn.
template <int kRows, int kCount>
LAMINA_DEVICE void apply_steps(const Output& p, const int64_t (&rows)[kRows],
                               const Columns<kCount>& columns, float (&value)[kRows * kCount]) {
  if (p.activation == Activation::kGelu) activate_all<Activation::kGelu>(value);
  if (p.activation == Activation::kGeluTanh) activate_all<Activation::kGeluTanh>(value);
  if (p.activation == Activation::kSilu) activate_all<Activation::kSilu>(value);
  combine_all(p.gate, rows, columns, value, [](float a, float b) { return a * b; });
  combine_all(p.residual, rows, columns, value, [](float a, float b) { return a + b; });
}

template <int kCount>
LAMINA_DEVICE void store_int8(const Output& p, const float (&value)[kCount], int64_t i,
                              const Columns<kCount>& columns) {
  const quantize_int8::Quantizer quantizer({p.out_scale[i], 0}, true);
  Run<int8_t, kCount> run;
#pragma unroll
  for (int e = 0; e < kCount; ++e) run.value[e] = requantize(quantizer, value[e]);
  store_run(static_cast<int8_t*>(p.out) + i * p.out_stride + columns.j0, run, columns.left);
}

template <class Out, int kCount>
LAMINA_DEVICE void store_as(const Output& p, const float (&value)[kCount], int64_t i,
                            const Columns<kCount>& columns) {
  store_run(static_cast<Out*>(p.out) + i * p.out_stride + columns.j0, round_run<Out>(value),
            columns.left);
}

// out[i, columns] from the sums of a * w, in f32 if they are scaled; i < m. Columns from n on are left out.
template <class P, class Acc, int kCount>
LAMINA_DEVICE void store_row(const P& p, const Acc (&acc)[kCount], int64_t i,
                             const Columns<kCount>& columns) {
  RowScale row = {};
  if constexpr (!std::is_same_v<Acc, float>) row = RowScale::of(p, i);
  float value[kCount];
  if constexpr (requires { p.token_scale; }) {
    scale_token(acc, dev::load_global(p.token_scale + i), columns, value);
  } else {
    scale_row(acc, row, columns, value);
  }
  const int64_t rows[] = {i};
  if (!p.is_plain()) apply_steps(p, rows, columns, value);
  if (p.out_scale.is_given()) return store_int8(p, value, i, columns);
  if (p.out_dtype == DType::kF32) return store_as<float>(p, value, i, columns);
  if (p.out_dtype == DType::kF16) return store_as<F16>(p, value, i, columns);
  store_as<BF16>(p, value, i, columns);
}

}  // namespace lamina::gemm_int8
