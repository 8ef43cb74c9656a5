// Loops over registers. GCC 12 keeps an accumulator array in registers only if every index is a
// constant from the start; an ordinary loop, unrolled later, spills each accumulator once a step
// (half the speed).
#pragma once

#include <type_traits>
#include <utility>

namespace lamina {

#define LAMINA_INLINE __attribute__((always_inline))
#define LAMINA_NOINLINE __attribute__((noinline))

// body(integral_constant<int, 0>) ... body(integral_constant<int, kCount - 1>)
template <int kCount, class Body>
LAMINA_INLINE constexpr void unroll(const Body& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) LAMINA_INLINE {
    (body(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// The value, which an empty instruction may have changed: it stays in a register and the compiler
// keeps the steps in source order. Without it GCC 12 hoists all loads of a step and spills
// accumulators for them: 14 instead of 21 MACs a cycle in gemm_int8_avx2 (2026-11, Xeon at 3.3 GHz,
// 64 x 4096 x 4096).
template <class Vector>
LAMINA_INLINE inline Vector in_order(Vector value) {
#if !defined(LAMINA_EMULATE)  // an emulated vector has no register
  __asm__ volatile("" : "+v"(value));
#endif
  return value;
}

}  // namespace lamina
