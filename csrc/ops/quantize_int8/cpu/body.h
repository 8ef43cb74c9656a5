// quantize_int8 on a CPU: plain loops that the compiler vectorises with each ISA's flags.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ops/quantize_int8/cpu/kernel.h"
#include "quant/int8.h"

namespace lamina::quantize_int8 {
namespace {

template <class In>
Range find_range(const In* x, int64_t k) {
  int32_t low = 0, high = 0;
  for (int64_t j = 0; j < k; ++j) {
    const int32_t key = order_key(to_bits(x[j]));
    low = std::min(low, key);
    high = std::max(high, key);
  }
  return {to_f32(from_bits<In>(order_key(low))), to_f32(from_bits<In>(order_key(high)))};
}

template <class In>
void quantize_row(const In* x, int64_t k, Grid grid, bool symmetric, int8_t* q) {
  const Quantizer quantizer(grid, symmetric);
  for (int64_t j = 0; j < k; ++j) q[j] = quantizer(to_f32(x[j]));
}

template <class In>
void quantize_rows(const Params& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const In* const x = static_cast<const In*>(p.x) + i * p.x_stride;
    const Range range = find_range(x, p.k);
    const bool is_static = p.static_scale.is_given();
    int8_t* const q = p.q + i * p.k;
    Grid grid{std::numeric_limits<float>::quiet_NaN(), 0};
    if (is_static ? range.has_nan() : range.has_nan_or_inf()) {
      std::memset(q, 0, static_cast<size_t>(p.k));
    } else {
      grid = dynamic_grid(range, p.symmetric);
      if (is_static) grid = {p.static_scale[i], p.symmetric ? 0 : p.static_zero_point[i]};
      quantize_row(x, p.k, grid, p.symmetric, q);
    }
    p.scale[i] = grid.scale;
    if (!p.symmetric) p.zero_point[i] = static_cast<int8_t>(grid.zero_point);
  }
}

inline CpuKernel make_kernel(const char* name, Isa isa) {
  return {name, isa, [](const Params& p, int64_t begin, int64_t end) {
            if (p.x_dtype == DType::kF32) quantize_rows<float>(p, begin, end);
            if (p.x_dtype == DType::kF16) quantize_rows<F16>(p, begin, end);
            if (p.x_dtype == DType::kBF16) quantize_rows<BF16>(p, begin, end);
          }};
}

}  // namespace
}  // namespace lamina::quantize_int8
