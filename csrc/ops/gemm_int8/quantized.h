// gemm_int8_quantized:   (q, scale, zero_point) = quantize_int8(gemm_int8(...) in f32), bit for bit
//
//   static scale  symmetric. The epilogue makes the int8; a pass over it then finds the rows with a NaN
//   per token     a row's scale needs the whole row: the f32 rows are a workspace that the quantiser reads
#pragma once

#include "ops/gemm_int8/gemm_int8.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::gemm_int8 {

struct QuantizedParams {
  Params gemm;                     // all but where it goes
  quantize_int8::Params quantize;  // all but x

  bool is_static() const { return quantize.static_scale.is_given(); }
  // The f32 rows between product and quantiser, if there are any.
  int64_t workspace_bytes() const;
  // Where the product goes: to the workspace or, with a static scale, to quantize.q.
  void connect(void* workspace);
};

Status run_quantized(const QuantizedParams& connected, const Parallel& parallel);

}  // namespace lamina::gemm_int8
