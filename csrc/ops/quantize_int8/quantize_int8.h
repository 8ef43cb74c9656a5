// quantize_int8:   q[i,j] = clamp(rint(x[i,j] * (1 / scale[i])) + zero_point[i], q_min, 127)
//
//   symmetric    scale = max|x| / 127,         zero_point = 0,                        q_min = -127
//   asymmetric   scale = hi / 255 - lo / 255,  zero_point = rint(-128 - lo / scale),  q_min = -128
//                with lo = min(0, min x), hi = max(0, max x), so that 0 is represented exactly
//   static       scale (and zero_point) given
//
// All steps are in f32 and round to nearest even. scale is at least FLT_MIN, so even a row of zeros has a scale. A row
// that holds a NaN, or an Inf where the scale is dynamic, has no int8 form: it gets q = 0, zero_point = 0 and scale =
// NaN, and every product of that row is NaN. Reference: tests/reference/quantize.py
#pragma once

#include <cstdint>
#include <string>

#include "base/broadcast.h"
#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"
#include "quant/int8_rows.h"

namespace lamina::quantize_int8 {

struct Params : Int8Rows {
  int64_t m = 0, k = 0;
  const void* x = nullptr;  // [m, k] of x_dtype, unit column stride
  DType x_dtype = DType::kF32;
  int64_t x_stride = 0;                 // elements between rows of x
  Broadcast<float> static_scale;        // [m]; not given: dynamic
  Broadcast<int8_t> static_zero_point;  // [m], with static_scale and !symmetric

  // The static grid of row i.
  constexpr Grid static_grid(int64_t i) const {
    return {static_scale[i], symmetric ? 0 : int32_t{static_zero_point[i]}};
  }
};

// An error unless every value is finite and at least FLT_MIN. `what` opens the message: "op: argument".
Status check_scale(const char* what, const Broadcast<float>& scale, int64_t m);

Status run(const Params& params, const Parallel& parallel);

// The same on a GPU, for any m and k. The host cannot check a static scale without waiting for the GPU, so a row whose
// static scale is not finite or below FLT_MIN gets the same result as a row with a NaN.
Status run_cuda(const Params& params, int max_blocks, void* stream);

Status explain(int64_t m, int64_t k, int threads, std::string& text);

}  // namespace lamina::quantize_int8
