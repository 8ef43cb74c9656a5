// The epilogue of a product: the steps from its sums to the stored result. The maths is in gemm/epilogue_maths.h.
#pragma once

#include <cstdint>

#include "base/broadcast.h"
#include "base/numeric.h"
#include "gemm/activation.h"

namespace lamina::gemm {

// A float operand [m, n] of the epilogue, unit column stride.
struct Operand {
  const void* data = nullptr;  // of dtype; nullptr: not given
  int64_t stride = 0;          // elements between rows
  DType dtype = DType::kF32;

  constexpr bool is_given() const { return data != nullptr; }
};

struct Epilogue {
  const void* bias = nullptr;  // [n] of bias_dtype, or nullptr
  DType bias_dtype = DType::kF32;
  Activation activation = Activation::kNone;
  Operand gate, residual;
  Broadcast<float> out_scale;  // [m]; if given, out is int8 and NaN becomes kLost
  void* out = nullptr;         // [m, n] of out_dtype, or int8
  int64_t out_stride = 0;
  DType out_dtype = DType::kF32;

  // Whether the epilogue has no steps but scales, bias and rounding.
  constexpr bool is_plain() const {
    return activation == Activation::kNone && !gate.is_given() && !residual.is_given() &&
           !out_scale.is_given();
  }
};

}  // namespace lamina::gemm
