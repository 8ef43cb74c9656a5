// quantize_int8 on a GPU.
#pragma once

#include "base/status.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::quantize_int8 {

Status launch_rows(const Params& params, int max_blocks, void* stream);  // 0 < m < 2^31

}  // namespace lamina::quantize_int8
