// Asks for a cache line that is read later.
#pragma once

#include "base/unroll.h"

namespace lamina {
namespace {

// gcc takes a function that only prefetches for one without effects, and removes its calls. The empty asm keeps them.
LAMINA_INLINE inline void prefetch_line(const void* at) {
  __builtin_prefetch(at, 0, 2);
  asm volatile("");
}

}  // namespace
}  // namespace lamina
