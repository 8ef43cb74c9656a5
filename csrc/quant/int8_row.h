// One row that one thread of a CPU quantises: plain loops that the compiler vectorises with the flags of an ISA. Each ISA
// compiles its own copy: gemm/cpu/int8_nest.h says why. On a GPU: int8_row.cuh
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "quant/int8_rows.h"

namespace lamina {
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

// Stores row i of q, its scale and its zero point.
template <class In>
void store_row(const In* x, int64_t k, const RowGrid& found, const Int8Rows& to, int64_t i) {
  int8_t* const q = to.q + i * k;
  if (found.is_there) {
    const Quantizer quantizer = found.quantizer(to.symmetric);
    for (int64_t j = 0; j < k; ++j) q[j] = quantizer(to_f32(x[j]));
  } else {
    std::memset(q, 0, static_cast<size_t>(k));
  }
  const Grid grid = found.kept();
  to.scale[i] = grid.scale;
  if (!to.symmetric) to.zero_point[i] = static_cast<int8_t>(grid.zero_point);
}

// Quantises x as row i.
template <class In>
void quantize_row(const In* x, int64_t k, const Int8Rows& to, int64_t i) {
  store_row(x, k, row_grid(find_range(x, k), to.symmetric), to, i);
}

}  // namespace
}  // namespace lamina
