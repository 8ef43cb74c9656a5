// gemm_int8_quantized:   (q, scale, zero_point) = quantize_int8(gemm_int8(...) in f32), bit for bit
//
//   static scale     must be symmetric. The epilogue stores int8; a pass over the int8 then finds the rows with a NaN
//   scale per token  needs a whole row: the product stores f32 rows in a workspace, which the quantiser reads
#pragma once

#include "ops/gemm_int8/gemm_int8.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::gemm_int8 {

struct QuantizedParams {
  Params gemm;                     // all members but the output
  quantize_int8::Params quantize;  // all members but x

  bool is_static() const { return quantize.static_scale.is_given(); }
  // The bytes of the f32 rows between product and quantiser; 0 with a static scale.
  int64_t workspace_bytes() const;
  // Directs the output of the product to the workspace or, with a static scale, to quantize.q.
  void connect(void* workspace);
};

Status run_quantized(const QuantizedParams& connected, const Parallel& parallel);

}  // namespace lamina::gemm_int8
