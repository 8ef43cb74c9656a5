// A CPU kernel of sample_tokens and verify_draft, one for each ISA, as the launcher sees it.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ops/sample/sample.h"

namespace lamina::sample {

struct CpuKernel {
  const char* name;
  Isa isa;
  void (*sample_rows)(const Sample&, int64_t begin, int64_t end);
  void (*verify_requests)(const Verify&, int64_t begin, int64_t end);
};

}  // namespace lamina::sample
