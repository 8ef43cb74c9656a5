// A CPU kernel of merge_attention_states, one for each ISA, as the launcher sees it.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ops/merge_attention_states/merge_attention_states.h"

namespace lamina::merge_attention_states {

struct CpuKernel {
  const char* name;
  Isa isa;
  // Adds the rows of one token and head with these weights, one for each part.
  void (*add_rows)(const Params&, int64_t token, int64_t head, const float* weights);
};

}  // namespace lamina::merge_attention_states
