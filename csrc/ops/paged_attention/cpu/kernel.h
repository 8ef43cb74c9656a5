// A CPU kernel of paged_attention, one for each ISA, as the launcher sees it.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/cpu_features.h"
#include "base/int_math.h"
#include "ops/paged_attention/plan.h"

namespace lamina::paged_attention {

// The floats of a partial result of some rows, more than any kernel needs: 16 and a vector each.
inline int64_t slot_floats(const Params& params, const Plan& plan) {
  return plan.tile_rows * (16 + round_up(params.v_head_dim, 64));
}

// What all parts of a call share. partials: parts * slots_per_part partial results of slot_floats() each. arrivals: one
// counter a part, for the tile that begins in that part and ends in another: the last of its parts to arrive merges.
struct Call {
  const Params& params;
  const Plan& plan;
  float* partials;
  std::atomic<int32_t>* arrivals;
};

struct CpuKernel {
  const char* name;
  Isa isa;
  void (*compute)(const Call&, int64_t part);
};

}  // namespace lamina::paged_attention
