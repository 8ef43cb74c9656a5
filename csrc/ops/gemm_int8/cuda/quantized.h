// gemm_int8_quantized on a GPU: the launches behind the product's are on the same stream.
#pragma once

#include "ops/gemm_int8/cuda/plan.h"
#include "ops/gemm_int8/quantized.h"

namespace lamina::gemm_int8 {

// workspace: the plan's, as in run_cuda. A static scale that is not allowed gives its row q = 0 and
// scale NaN, as in quantize_int8.
Status run_quantized_cuda(const QuantizedParams& connected, const CudaPlan& plan, void* workspace,
                          void* stream);

Status launch_settle(const quantize_int8::Params& params, int max_blocks, void* stream);  // m > 0

}  // namespace lamina::gemm_int8
