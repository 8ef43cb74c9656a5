// Prefetches weights while a microkernel computes. Each ISA compiles its own copy: gemm/cpu/int8_nest.h says why.
#pragma once

#include <cstdint>

#include "base/unroll.h"

namespace lamina::gemm {
namespace {

// One multiply() prefetches a cache line of each of its tiles of n for every `every` groups of k that it multiplies.
struct Prefetch {
  const int8_t* at;
  int every;
  int left = 0;  // groups until the next line

  template <int kTiles>
  LAMINA_INLINE void pass(int groups, int64_t w_stride) {
    constexpr int kLine = 64;
    for (left -= groups; left < 0; left += every, at += kLine)
      unroll<kTiles>([&](auto t) LAMINA_INLINE { __builtin_prefetch(at + t * w_stride, 0, 2); });
  }
};

}  // namespace
}  // namespace lamina::gemm
