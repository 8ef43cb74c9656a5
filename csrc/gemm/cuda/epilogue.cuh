// The epilogue on a GPU: the formula of gemm/epilogue_maths.h for neighbouring columns of a row.
//
//   P        the Params of a product: an Epilogue with a `problem`
//   Scaler   scales the sums of the op before the bias is added:
//     template <int kCount> struct Columns { Columns(p, j0, left) }   operands of kCount columns from j0; `left` exist,
//                                                                     the others repeat the first
//     struct Row { of(p, i);  from_lane(row, p, lane) }               operands of row i; the Row of another lane
//     scale(acc, row, columns, e)                                     the scaled sum of column e
#pragma once

#include <bit>
#include <type_traits>

#include "block/runs.cuh"
#include "device/device.h"
#include "gemm/epilogue.h"
#include "gemm/epilogue_maths.h"

namespace lamina::gemm {

// The Scaler of sums that are scaled already.
struct Unscaled {
  template <int kCount>
  struct Columns {
    LAMINA_DEVICE Columns(const auto&, int64_t, int64_t) {}
  };
  struct Row {
    LAMINA_DEVICE static Row of(const auto&, int64_t) { return {}; }
    LAMINA_DEVICE static Row from_lane(const Row&, const auto&, int) { return {}; }
  };
  LAMINA_DEVICE static float scale(float sum, const Row&, const auto&, int) { return sum; }
};

LAMINA_DEVICE float load_bias(const Epilogue& p, int64_t j) {
  if (p.bias == nullptr) return kNoBias;
  if (p.bias_dtype == DType::kF32) return static_cast<const float*>(p.bias)[j];
  if (p.bias_dtype == DType::kF16) return to_f32(static_cast<const F16*>(p.bias)[j]);
  return to_f32(static_cast<const BF16*>(p.bias)[j]);
}

// kCount columns from j0 < n; `left` of them exist.
template <int kCount>
struct ColumnRange {
  int64_t j0, left;
};

// The operands of the epilogue that belong to columns; columns from n on repeat the first column's.
template <class Scaler, int kCount>
struct Columns : ColumnRange<kCount> {
  using ColumnRange<kCount>::j0, ColumnRange<kCount>::left;
  typename Scaler::template Columns<kCount> scales;
  float bias[kCount];

  template <class P>
  LAMINA_DEVICE Columns(const P& p, int64_t first)
      : ColumnRange<kCount>{first, p.problem.n - first}, scales(p, j0, left) {
#pragma unroll
    for (int e = 0; e < kCount; ++e) bias[e] = load_bias(p, j0 + (e < left ? e : 0));
  }
};

template <class Scaler, class Acc, int kCount>
LAMINA_DEVICE void scale_row(const Acc (&acc)[kCount], const typename Scaler::Row& row,
                             const Columns<Scaler, kCount>& columns, float (&value)[kCount]) {
#pragma unroll
  for (int e = 0; e < kCount; ++e)
    value[e] = Scaler::scale(acc[e], row, columns.scales, e) + columns.bias[e];
}

// The same values as from_f32, with one instruction in place of a dozen.
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

// Activates all values, a few in each iteration: the code of an activation is long, and a kernel stores rows in many
// places. Registers have no index, so each iteration shifts all values down and always works on the first few.
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

// value = combine(value, element of the operand in f32), for the columns of each row in turn.
template <class T, int kRows, int kCount, class Combine>
LAMINA_DEVICE void combine_as(const Operand& operand, const int64_t (&rows)[kRows],
                              const ColumnRange<kCount>& columns, float (&value)[kRows * kCount],
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
                               const ColumnRange<kCount>& columns, float (&value)[kRows * kCount],
                               const Combine& combine) {
  if (!operand.is_given()) return;
  if (operand.dtype == DType::kF32)
    return combine_as<float>(operand, rows, columns, value, combine);
  if (operand.dtype == DType::kF16) return combine_as<F16>(operand, rows, columns, value, combine);
  combine_as<BF16>(operand, rows, columns, value, combine);
}

// The steps between bias and rounding, for the columns of each row in turn.
template <int kRows, int kCount>
LAMINA_DEVICE void apply_steps(const Epilogue& p, const int64_t (&rows)[kRows],
                               const ColumnRange<kCount>& columns, float (&value)[kRows * kCount]) {
  if (p.activation == Activation::kGelu) activate_all<Activation::kGelu>(value);
  if (p.activation == Activation::kGeluTanh) activate_all<Activation::kGeluTanh>(value);
  if (p.activation == Activation::kSilu) activate_all<Activation::kSilu>(value);
  combine_all(p.gate, rows, columns, value, [](float a, float b) { return a * b; });
  combine_all(p.residual, rows, columns, value, [](float a, float b) { return a + b; });
}

template <int kCount>
LAMINA_DEVICE void store_int8(const Epilogue& p, const float (&value)[kCount], int64_t i,
                              const ColumnRange<kCount>& columns) {
  const Quantizer quantizer({p.out_scale[i], 0}, true);
  Run<int8_t, kCount> run;
#pragma unroll
  for (int e = 0; e < kCount; ++e) run.value[e] = requantize(quantizer, value[e]);
  store_run(static_cast<int8_t*>(p.out) + i * p.out_stride + columns.j0, run, columns.left);
}

template <class Out, int kCount>
LAMINA_DEVICE void store_as(const Epilogue& p, const float (&value)[kCount], int64_t i,
                            const ColumnRange<kCount>& columns) {
  store_run(static_cast<Out*>(p.out) + i * p.out_stride + columns.j0, round_run<Out>(value),
            columns.left);
}

// Stores out[i, columns] from the sums of a * w; i < m. Columns from n on are not stored.
template <class Scaler, class P, class Acc, int kCount>
LAMINA_DEVICE void store_row(const P& p, const Acc (&acc)[kCount], int64_t i,
                             const Columns<Scaler, kCount>& columns) {
  float value[kCount];
  scale_row(acc, Scaler::Row::of(p, i), columns, value);
  const int64_t rows[] = {i};
  if (!p.is_plain()) apply_steps(p, rows, columns, value);
  if (p.out_scale.is_given()) return store_int8(p, value, i, columns);
  if (p.out_dtype == DType::kF32) return store_as<float>(p, value, i, columns);
  if (p.out_dtype == DType::kF16) return store_as<F16>(p, value, i, columns);
  store_as<BF16>(p, value, i, columns);
}

}  // namespace lamina::gemm
