// The results of ops that end with the int8 quantiser.
#pragma once

#include "quant/int8_rows.h"
#include "torch/interop.h"

namespace lamina::interop {

struct Int8Tensors {
  bool symmetric;
  Tensor q, scale, zero_point;  // [m, n], [m, 1], and [m, 1] or, if symmetric, [0, 1]

  Int8Tensors(const Tensor& like, int64_t m, int64_t n, bool symmetric)
      : symmetric(symmetric),
        q(new_tensor(like, {m, n}, ScalarType::Char)),
        scale(new_tensor(like, {m, 1}, ScalarType::Float)),
        zero_point(new_tensor(like, {symmetric ? 0 : m, 1}, ScalarType::Char)) {}

  Int8Rows rows() const {
    return {symmetric, static_cast<int8_t*>(q.data_ptr()), static_cast<float*>(scale.data_ptr()),
            static_cast<int8_t*>(zero_point.data_ptr())};
  }
};

}  // namespace lamina::interop
