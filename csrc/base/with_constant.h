// A number that is known when the program runs, as a constant of the compiler.
#pragma once

#include <type_traits>

#include "base/unroll.h"

namespace lamina {

// Calls body(integral_constant<int, count>), for a count from 1 to kMost.
template <int kMost, class Body>
LAMINA_INLINE constexpr void with_constant(int count, const Body& body) {
  if constexpr (kMost > 1)
    if (count < kMost) return with_constant<kMost - 1>(count, body);
  body(std::integral_constant<int, kMost>{});
}

}  // namespace lamina
