// silu_mul:        out[i,j] = T(silu(gate[i,j]) * up[i,j])
// silu_mul_int8:   (q, scale, zero_point) = quantize_int8(out)
//
// All steps are in f32: silu is that of gemm/activation.h, T rounds once to the dtype of gate and up. These are the steps
// of a product's epilogue with a gate (gemm/epilogue_maths.h).
// Reference: tests/reference/silu_mul.py
#pragma once

#include <cstdint>
#include <string>

#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"
#include "gemm/activation.h"
#include "quant/int8_rows.h"

namespace lamina::silu_mul {

struct Params {
  int64_t m = 0, n = 0;
  DType dtype = DType::kF32;               // of all floats
  const void* gate = nullptr;              // [m, n], unit column stride
  const void* up = nullptr;                // [m, n], unit column stride
  int64_t gate_stride = 0, up_stride = 0;  // elements between rows
  void* out = nullptr;                     // [m, n] contiguous, unless `quantized` is given
  Int8Rows quantized;
};

Status run(const Params& params, const Parallel& parallel);

Status run_cuda(const Params& params, int max_blocks, void* stream);

Status explain(int64_t m, int64_t n, int threads, std::string& text);

// The formula, for every backend.
template <class T>
LAMINA_INLINE constexpr T silu_times(T gate, T up) {
  return from_f32<T>(activate<Activation::kSilu>(to_f32(gate)) * to_f32(up));
}

}  // namespace lamina::silu_mul
