// Whole rows in int8: the grid of a row, and where rows are stored.
#pragma once

#include <cstdint>
#include <limits>

#include "quant/int8.h"

namespace lamina {

// The grid of a row. A row without an int8 form (is_there is false) gets zeros and the scale NaN.
struct RowGrid {
  Grid grid;
  bool is_there;

  constexpr Quantizer quantizer(bool symmetric) const {
    return {is_there ? grid : Grid{1.0f, 0}, symmetric};
  }
  // The scale and zero point to store.
  constexpr Grid kept() const {
    return is_there ? grid : Grid{std::numeric_limits<float>::quiet_NaN(), 0};
  }
};

// The dynamic grid of a row. A row with a NaN or an infinity has no int8 form.
constexpr RowGrid row_grid(Range range, bool symmetric) {
  return {dynamic_grid(range, symmetric), !range.has_nan_or_inf()};
}

// Where an op that ends with the quantiser stores its m rows of n values.
struct Int8Rows {
  bool symmetric = true;
  int8_t* q = nullptr;           // [m, n] contiguous
  float* scale = nullptr;        // [m]; nullptr: the op stores floats
  int8_t* zero_point = nullptr;  // [m], used when !symmetric

  constexpr bool is_given() const { return scale != nullptr; }
};

}  // namespace lamina
