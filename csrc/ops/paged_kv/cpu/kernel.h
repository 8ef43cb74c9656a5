// A CPU kernel of paged_kv, one for each ISA, as the launcher sees it.
#pragma once

#include <cstdint>

#include "base/cpu_features.h"
#include "ops/paged_kv/paged_kv.h"

namespace lamina::paged_kv {

struct CpuKernel {
  const char* name;
  Isa isa;
  void (*append)(const Append&, int64_t part,
                 int64_t parts);  // the tokens that part_of gives the part
  void (*rotate_q)(const Append&, int64_t begin, int64_t end);
  void (*gather)(const Gather&, int64_t begin, int64_t end);
};

// The part that stores a slot. Tokens with one slot belong to one part, which stores them in order. The hash spreads
// slots that differ by multiples of the page, as those of a decoded batch may.
constexpr int64_t part_of(int64_t slot, int64_t parts) {
  const uint64_t hash = static_cast<uint64_t>(slot) * 0x9e3779b97f4a7c15u;
  return static_cast<int64_t>((hash >> 32) % static_cast<uint64_t>(parts));
}

}  // namespace lamina::paged_kv
