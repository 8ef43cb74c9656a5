// The dtypes that the CUDA kernels on f16 and bf16 take; the CPU kernels take more.
#pragma once

#include "base/numeric.h"
#include "base/status.h"
#include "quant/group_tensor.h"

namespace lamina::gemm {

// Errors that name the argument.
Status check_half(const char* op, DType a);
Status check_halves(const char* op, DType a, const GroupTensor& scale, const GroupTensor& zero);

}  // namespace lamina::gemm
