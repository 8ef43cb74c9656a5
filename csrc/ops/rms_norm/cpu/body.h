// rms_norm and rms_norm_int8 on a CPU: plain loops over a row, which the compiler vectorises with each ISA's flags. After
// the first loop the row is in cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/scratch.h"
#include "ops/rms_norm/cpu/kernel.h"
#include "quant/int8_row.h"

namespace lamina::rms_norm {
namespace {

// Adds the upper half of the values to the lower half until kLeft values are left.
template <int kCount, int kLeft>
void halve(float* values) {
  for (int half = kCount / 2; half >= kLeft; half /= 2)
    for (int a = 0; a < half; ++a) values[a] += values[a + half];
}

// The sum of the squares of a row in the order of rms_norm.h. Accumulators without a column are 0.
template <class T>
float sum_of_squares(const T* __restrict z, int64_t n) {
  constexpr int kChunk = kLaneBytes / static_cast<int>(sizeof(T)), kSums = kLanes * kChunk;
  constexpr int kEighths = 8, kOfEighth = kSums / kEighths;
  alignas(64) float sums[kEighths][kOfEighth];
  alignas(64) float of_eighths[kEighths * kChunk] = {};
  float* const flat = sums[0];
  const int64_t eighths = (std::min<int64_t>(n, kSums) + kOfEighth - 1) / kOfEighth;
  std::fill_n(flat, eighths * kOfEighth, 0.0f);
  for (int64_t begin = 0; begin < n; begin += kSums) {
    const int64_t count = std::min<int64_t>(n - begin, kSums);
    for (int64_t l = 0; l < count; ++l) flat[l] += square(z[begin + l]);
  }
  for (int64_t w = 0; w < eighths; ++w) {
    halve<kOfEighth, kChunk>(sums[w]);
    std::copy_n(sums[w], kChunk, of_eighths + w * kChunk);
  }
  halve<kEighths * kChunk, 1>(of_eighths);
  return of_eighths[0];
}

template <class T>
void add_row(const T* __restrict x, const T* __restrict residual, int64_t n, T* __restrict z) {
  for (int64_t j = 0; j < n; ++j) z[j] = add(x[j], residual[j]);
}

template <class T>
void normalize_row(const T* __restrict z, float inverse, const T* __restrict weight, int64_t n,
                   T* __restrict out) {
  for (int64_t j = 0; j < n; ++j) out[j] = normalize(z[j], inverse, weight[j]);
}

template <class T>
void run_rows(const Params& p, int64_t begin, int64_t end) {
  const bool is_int8 = p.quantized.is_given();
  T* const scratch =
      is_int8 ? static_cast<T*>(thread_scratch(p.n * static_cast<int64_t>(sizeof(T)))) : nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const T* z = static_cast<const T*>(p.x) + i * p.x_stride;
    if (p.residual != nullptr) {
      T* const sum = static_cast<T*>(p.new_residual) + i * p.n;
      add_row(z, static_cast<const T*>(p.residual) + i * p.residual_stride, p.n, sum);
      z = sum;
    }
    const float inverse = inverse_rms(sum_of_squares(z, p.n), p.n, p.eps);
    T* const out = is_int8 ? scratch : static_cast<T*>(p.out) + i * p.n;
    normalize_row(z, inverse, static_cast<const T*>(p.weight), p.n, out);
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
}  // namespace lamina::rms_norm
