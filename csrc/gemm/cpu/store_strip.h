// The epilogue of a product on a CPU: turns the sums of a strip of columns into stored outputs. Each ISA compiles its
// own copy: gemm/cpu/int8_nest.h says why.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "base/unroll.h"
#include "gemm/cpu/row_steps.h"
#include "gemm/epilogue.h"
#include "gemm/epilogue_maths.h"

namespace lamina::gemm {
namespace {

// Stores sums [rows][kStrip].
//
//   Params   an Epilogue and, for integer sums, a_scale and a_zero_point of each row
//   kNarrow  the columns of one tile: a strip of this width has its own copy of the code
//   kOffset  a constant that the kernel adds to every activation, and so to every zero point
template <class Params, int kStrip, int kNarrow, int kOffset = 0>
struct StoreStrip {
  const Params& p;

  struct Columns {
    alignas(64) float scale[kStrip];
    alignas(64) float bias[kStrip];
    alignas(64) int32_t sum[kStrip];
  };

  void load_bias(int64_t n0, int count, Columns& c) const {
    std::fill_n(c.bias, count, kNoBias);
    with_floats(p.bias, p.bias_dtype, [&](const auto* bias) {
      for (int j = 0; j < count; ++j) c.bias[j] = to_f32(bias[n0 + j]);
    });
  }

  // The sums of row i are too large by this multiple of the column sums.
  int32_t zero_point(int64_t i) const {
    return kOffset + (p.a_zero_point.is_given() ? p.a_zero_point[i] : 0);
  }

  // A constant count compiles to whole vectors without a remainder loop.
  using WholeStrip = std::integral_constant<int, kStrip>;
  using OneTile = std::integral_constant<int, kNarrow>;

  // out[j] = activation(scaled sum + bias) for row i.
  template <Activation kActivation, class Out, class Acc, class Count>
  LAMINA_INLINE void scale_row(const Acc* __restrict sum, int64_t i, Count count, const Columns& c,
                               Out* __restrict out) const {
    if constexpr (std::is_same_v<Acc, float>) {  // the sums are scaled already
      for (int j = 0; j < count; ++j)
        out[j] = from_f32<Out>(activate<kActivation>(sum[j] + c.bias[j]));
    } else {
      const float a_scale = p.a_scale[i];
      const int32_t zero = zero_point(i);
      for (int j = 0; j < count; ++j)
        out[j] = from_f32<Out>(activate<kActivation>(
            scale(correct(sum[j], zero, c.sum[j]), a_scale, c.scale[j]) + c.bias[j]));
    }
  }

  template <class Out>
  Out* out_at(int64_t i, int64_t j) const {
    return static_cast<Out*>(p.out) + i * p.out_stride + j;
  }

  template <class Out, class Acc>
  void store_plain(const Acc* sums, int64_t m0, int64_t rows, int64_t n0, int count,
                   const Columns& c) const {
    for (int64_t r = 0; r < rows; ++r) {
      const auto store_columns = [&](auto columns) LAMINA_INLINE {
        scale_row<Activation::kNone>(sums + r * kStrip, m0 + r, columns, c,
                                     out_at<Out>(m0 + r, n0));
      };
      if (count == kStrip) {
        store_columns(WholeStrip{});
      } else {
        store_columns(count);
      }
    }
  }

  // The next two are steps of store_steps, not inlined for the reason in row_steps.h.
  template <Activation kActivation, class Acc, class Count>
  LAMINA_NOINLINE void activate_row(const Acc* __restrict sum, int64_t i, Count count,
                                    const Columns& c, float* __restrict y) const {
    scale_row<kActivation>(sum, i, count, c, y);
  }

  template <class Count>
  LAMINA_NOINLINE void requantize_row(const float* __restrict y, int64_t i, Count count,
                                      int8_t* __restrict out) const {
    const Quantizer quantizer({p.out_scale[i], 0}, true);
    for (int j = 0; j < count; ++j) out[j] = requantize(quantizer, y[j]);
  }

  // Calls body with `data` as a pointer to its dtype, unless it is nullptr.
  template <class Body>
  static void with_floats(const void* data, DType dtype, const Body& body) {
    if (data == nullptr) return;
    if (dtype == DType::kF32) body(static_cast<const float*>(data));
    if (dtype == DType::kF16) body(static_cast<const F16*>(data));
    if (dtype == DType::kBF16) body(static_cast<const BF16*>(data));
  }

  // Calls body with a pointer to element [i, j] of the operand, if it is given.
  template <class Body>
  static void with_elements(const Operand& operand, int64_t i, int64_t j, const Body& body) {
    with_floats(operand.data, operand.dtype,
                [&](const auto* data) { body(data + i * operand.stride + j); });
  }

  // The whole epilogue, one step after another over a row in f32. The row stays in L1, and the code size is the sum
  // of the steps and not the product of their variants.
  template <class Acc, class Count>
  void store_steps(const Acc* sums, int64_t m0, int64_t rows, int64_t n0, Count count,
                   const Columns& c) const {
    const bool is_int8 = p.out_scale.is_given();
    alignas(64) float buffer[kStrip];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = m0 + r;
      const Acc* const sum = sums + r * kStrip;
      float* const y = is_int8 || p.out_dtype != DType::kF32 ? buffer : out_at<float>(i, n0);
      if (p.activation == Activation::kNone) activate_row<Activation::kNone>(sum, i, count, c, y);
      if (p.activation == Activation::kGelu) activate_row<Activation::kGelu>(sum, i, count, c, y);
      if (p.activation == Activation::kGeluTanh)
        activate_row<Activation::kGeluTanh>(sum, i, count, c, y);
      if (p.activation == Activation::kSilu) activate_row<Activation::kSilu>(sum, i, count, c, y);
      with_elements(p.gate, i, n0, [&](const auto* gate) { multiply_row(gate, count, y); });
      with_elements(p.residual, i, n0, [&](const auto* residual) { add_row(residual, count, y); });
      if (is_int8) {
        requantize_row(y, i, count, out_at<int8_t>(i, n0));
      } else if (p.out_dtype == DType::kF16) {
        round_row(y, count, out_at<F16>(i, n0));
      } else if (p.out_dtype == DType::kBF16) {
        round_row(y, count, out_at<BF16>(i, n0));
      }
    }
  }

  template <class Acc>
  void store(const Acc* sums, int64_t m0, int64_t rows, int64_t n0, int count,
             const Columns& c) const {
    if (p.is_plain()) {
      if (p.out_dtype == DType::kF32) store_plain<float>(sums, m0, rows, n0, count, c);
      if (p.out_dtype == DType::kF16) store_plain<F16>(sums, m0, rows, n0, count, c);
      if (p.out_dtype == DType::kBF16) store_plain<BF16>(sums, m0, rows, n0, count, c);
    } else if (count == WholeStrip::value) {
      store_steps(sums, m0, rows, n0, WholeStrip{}, c);
    } else if (count == OneTile::value) {
      store_steps(sums, m0, rows, n0, OneTile{}, c);
    } else {
      store_steps(sums, m0, rows, n0, count, c);
    }
  }
};

}  // namespace
}  // namespace lamina::gemm
