// A CPU kernel of quantize_int8, one for each ISA, as the launcher sees it.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::quantize_int8 {

struct CpuKernel {
  const char* name;
  Isa isa;
  void (*quantize_rows)(const Params&, int64_t begin, int64_t end);
};

}  // namespace lamina::quantize_int8
