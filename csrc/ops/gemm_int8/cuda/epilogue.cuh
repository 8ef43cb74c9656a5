// What follows the sums on a GPU: the formula of ../epilogue.h for neighbouring columns of a row.
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

// The first `count` >= 1 of a run, then the first again; in whole words where they are all there and `from` allows them.
template <class T, int kCount>
LAMINA_DEVICE Run<T, kCount> load_run(const T* from, int64_t count) {
  using Word = typename Run<T, kCount>::Word;
  struct Words {
    Word word[Run<T, kCount>::kWords];
  };
  if (count >= kCount && reinterpret_cast<uintptr_t>(from) % sizeof(Word) == 0) {
    Words words;
#pragma unroll
    for (int v = 0; v < Run<T, kCount>::kWords; ++v)
      words.word[v] = dev::load_global(reinterpret_cast<const Word*>(from) + v);
    return std::bit_cast<Run<T, kCount>>(words);
  }
  Run<T, kCount> run;
#pragma unroll
  for (int e = 0; e < kCount; ++e) run.value[e] = dev::load_global(from + (e < count ? e : 0));
  return run;
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

LAMINA_DEVICE float load_bias(const Params& p, int64_t j) {
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

  LAMINA_DEVICE Columns(const Params& p, int64_t first) : j0(first), left(p.problem.n - first) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const int64_t j = j0 + (e < left ? e : 0);
      w_sum[e] = p.a_zero_point.is_given() && !p.problem.is_grouped ? p.w_sums[j] : 0;
      w_scale[e] = p.problem.is_grouped ? 1.0f : p.w_scale[j];
      bias[e] = load_bias(p, j);
    }
  }
};

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

// combine(value, element of the operand in f32), for the columns of row i.
template <class T, int kCount, class Combine>
LAMINA_DEVICE void combine_as(const Operand& operand, int64_t i, const Columns<kCount>& columns,
                              float (&value)[kCount], const Combine& combine) {
  const Run<T, kCount> run = load_run<T, kCount>(
      static_cast<const T*>(operand.data) + i * operand.stride + columns.j0, columns.left);
#pragma unroll
  for (int e = 0; e < kCount; ++e) value[e] = combine(value[e], to_f32(run.value[e]));
}

template <int kCount, class Combine>
LAMINA_DEVICE void combine_all(const Operand& operand, int64_t i, const Columns<kCount>& columns,
                               float (&value)[kCount], const Combine& combine) {
  if (!operand.is_given()) return;
  if (operand.dtype == DType::kF32) return combine_as<float>(operand, i, columns, value, combine);
  if (operand.dtype == DType::kF16) return combine_as<F16>(operand, i, columns, value, combine);
  combine_as<BF16>(operand, i, columns, value, combine);
}

// The steps between bias and rounding.
template <int kCount>
LAMINA_DEVICE void apply_steps(const Params& p, int64_t i, const Columns<kCount>& columns,
                               float (&value)[kCount]) {
  if (p.activation == Activation::kGelu) activate_all<Activation::kGelu>(value);
  if (p.activation == Activation::kGeluTanh) activate_all<Activation::kGeluTanh>(value);
  if (p.activation == Activation::kSilu) activate_all<Activation::kSilu>(value);
  combine_all(p.gate, i, columns, value, [](float a, float b) { return a * b; });
  combine_all(p.residual, i, columns, value, [](float a, float b) { return a + b; });
}

template <int kCount>
LAMINA_DEVICE void store_int8(const Params& p, const float (&value)[kCount], int64_t i,
                              const Columns<kCount>& columns) {
  const quantize_int8::Quantizer quantizer({p.out_scale[i], 0}, true);
  Run<int8_t, kCount> run;
#pragma unroll
  for (int e = 0; e < kCount; ++e) run.value[e] = requantize(quantizer, value[e]);
  store_run(static_cast<int8_t*>(p.out) + i * p.out_stride + columns.j0, run, columns.left);
}

template <class Out, int kCount>
LAMINA_DEVICE void store_as(const Params& p, const float (&value)[kCount], int64_t i,
                            const Columns<kCount>& columns) {
  Run<Out, kCount> run;
#pragma unroll
  for (int e = 0; e < kCount; ++e) run.value[e] = round_to<Out>(value[e]);
  store_run(static_cast<Out*>(p.out) + i * p.out_stride + columns.j0, run, columns.left);
}

// out[i, columns] from the sums of a * w, in f32 if they are scaled; i < m. Columns from n on are left out.
template <class Acc, int kCount>
LAMINA_DEVICE void store_row(const Params& p, const Acc (&acc)[kCount], int64_t i,
                             const Columns<kCount>& columns) {
  float value[kCount];
  if constexpr (std::is_same_v<Acc, float>) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) value[e] = acc[e] + columns.bias[e];
  } else {
    const float a_scale = p.a_scale[i];
    const int32_t zero = p.a_zero_point.is_given() ? p.a_zero_point[i] : 0;
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      value[e] = scale(correct(acc[e], zero, columns.w_sum[e]), a_scale, columns.w_scale[e],
                       columns.bias[e]);
  }
  if (!p.is_plain()) apply_steps(p, i, columns, value);
  if (p.out_scale.is_given()) return store_int8(p, value, i, columns);
  if (p.out_dtype == DType::kF32) return store_as<float>(p, value, i, columns);
  if (p.out_dtype == DType::kF16) return store_as<F16>(p, value, i, columns);
  store_as<BF16>(p, value, i, columns);
}

}  // namespace lamina::gemm_int8
