// rms_norm:        out[i,j] = T(T(z[i,j] * inverse[i]) * weight[j]),   inverse[i] = 1 / sqrt(sum_j z[i,j]^2 / n + eps)
// rms_norm_int8:   (q, scale, zero_point) = quantize_int8(out)
//
//   z = x, or with a residual z = T(x + residual), which is also stored. T rounds to the dtype of x; all else is f32.
//
// Order of the sum. 256 lanes hold 16 bytes each: kChunk = 8 halves or 4 f32. Accumulator e of lane t adds, in order, the
// squares of the columns j with j mod (256 kChunk) = t kChunk + e. Then accumulators e are added over the 32 lanes of
// each eighth of the lanes, then over the eighths, then over e. Each of these three sums halves its terms again and
// again: term a takes term a + half. A CPU evaluates this order with vectors, a GPU with one block of 256 threads, so
// that all get the same bits.
// Reference: tests/reference/rms_norm.py
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"
#include "quant/int8_rows.h"

namespace lamina::rms_norm {

// The mean divides by n as an f32, which is exact up to here.
inline constexpr int64_t kMaxN = int64_t{1} << 24;

inline constexpr int kLanes = 256, kLaneBytes = 16;

struct Params {
  int64_t m = 0, n = 0;
  DType dtype = DType::kF32;       // of all floats
  const void* x = nullptr;         // [m, n], unit column stride
  int64_t x_stride = 0;            // elements between rows
  const void* weight = nullptr;    // [n]
  float eps = 0.0f;                // finite and at least FLT_MIN
  const void* residual = nullptr;  // [m, n], unit column stride, or nullptr
  int64_t residual_stride = 0;
  void* new_residual = nullptr;  // [m, n] contiguous: z, if there is a residual
  void* out = nullptr;           // [m, n] contiguous, unless `quantized` is given
  Int8Rows quantized;
};

Status check(const char* op, const Params& params);

Status run(const Params& checked, const Parallel& parallel);

Status run_cuda(const Params& checked, int max_blocks, void* stream);

Status explain(int64_t m, int64_t n, int threads, std::string& text);

// The steps of the formula, for every backend.

template <class T>
constexpr T add(T x, T residual) {
  return from_f32<T>(to_f32(x) + to_f32(residual));
}

template <class T>
constexpr float square(T z) {
  return to_f32(z) * to_f32(z);
}

constexpr float inverse_rms(float sum_of_squares, int64_t n, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(n) + eps);
}

template <class T>
constexpr T normalize(T z, float inverse, T weight) {
  return from_f32<T>(to_f32(from_f32<T>(to_f32(z) * inverse)) * to_f32(weight));
}

}  // namespace lamina::rms_norm
