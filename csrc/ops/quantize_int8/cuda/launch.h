// quantize_int8 on a GPU.
#pragma once

#include "base/status.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::quantize_int8 {

// Whatever m and k. A static scale that is not finite or below FLT_MIN cannot be refused without waiting for
// the GPU: such a row comes back as one with a NaN does.
Status run_cuda(const Params& params, int max_blocks, void* stream);

Status launch_rows(const Params& params, int max_blocks, void* stream);  // 0 < m < 2^31

}  // namespace lamina::quantize_int8
