// A CPU kernel of rms_norm, one for each ISA, as the launcher sees it.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ops/rms_norm/rms_norm.h"

namespace lamina::rms_norm {

struct CpuKernel {
  const char* name;
  Isa isa;
  void (*run_rows)(const Params&, int64_t begin, int64_t end);
};

}  // namespace lamina::rms_norm
