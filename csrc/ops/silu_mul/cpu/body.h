// silu_mul and silu_mul_int8 on a CPU: plain loops over a row, which the compiler vectorises with each ISA's flags.
#pragma once

#include <cstdint>

#include "base/scratch.h"
#include "ops/silu_mul/cpu/kernel.h"
#include "quant/int8_row.h"

namespace lamina::silu_mul {
namespace {

template <class T>
void multiply_row(const T* __restrict gate, const T* __restrict up, int64_t n, T* __restrict out) {
  for (int64_t j = 0; j < n; ++j) out[j] = silu_times(gate[j], up[j]);
}

template <class T>
void run_rows(const Params& p, int64_t begin, int64_t end) {
  const bool is_int8 = p.quantized.is_given();
  T* const scratch =
      is_int8 ? static_cast<T*>(thread_scratch(p.n * static_cast<int64_t>(sizeof(T)))) : nullptr;
  for (int64_t i = begin; i < end; ++i) {
    T* const out = is_int8 ? scratch : static_cast<T*>(p.out) + i * p.n;
    multiply_row(static_cast<const T*>(p.gate) + i * p.gate_stride,
                 static_cast<const T*>(p.up) + i * p.up_stride, p.n, out);
    if (is_int8) quantize_row(out, p.n, p.quantized, i);
  }
}

constexpr CpuKernel make_kernel(const char* name, Isa isa) {
  return {name, isa, [](const Params& p, int64_t begin, int64_t end) {
            if (p.dtype == DType::kF32) run_rows<float>(p, begin, end);
            if (p.dtype == DType::kF16) run_rows<F16>(p, begin, end);
            if (p.dtype == DType::kBF16) run_rows<BF16>(p, begin, end);
          }};
}

}  // namespace
}  // namespace lamina::silu_mul
