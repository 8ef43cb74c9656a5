// A CPU kernel of silu_mul, one for each ISA, as the launcher sees it.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ops/silu_mul/silu_mul.h"

namespace lamina::silu_mul {

struct CpuKernel {
  const char* name;
  Isa isa;
  void (*run_rows)(const Params&, int64_t begin, int64_t end);
};

}  // namespace lamina::silu_mul
