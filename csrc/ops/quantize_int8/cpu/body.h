// quantize_int8 on a CPU: plain loops that the compiler vectorises with each ISA's flags.
#pragma once

#include <cstdint>

#include "ops/quantize_int8/cpu/kernel.h"
#include "quant/int8_row.h"

namespace lamina::quantize_int8 {
namespace {

template <class In>
void quantize_rows(const Params& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const In* const x = static_cast<const In*>(p.x) + i * p.x_stride;
    const Range range = find_range(x, p.k);
    RowGrid found = row_grid(range, p.symmetric);
    if (p.static_scale.is_given()) found = {p.static_grid(i), !range.has_nan()};
    store_row(x, p.k, found, p, i);
  }
}

constexpr CpuKernel make_kernel(const char* name, Isa isa) {
  return {name, isa, [](const Params& p, int64_t begin, int64_t end) {
            if (p.x_dtype == DType::kF32) quantize_rows<float>(p, begin, end);
            if (p.x_dtype == DType::kF16) quantize_rows<F16>(p, begin, end);
            if (p.x_dtype == DType::kBF16) quantize_rows<BF16>(p, begin, end);
          }};
}

}  // namespace
}  // namespace lamina::quantize_int8
