// Loops over registers. GCC 12 keeps an accumulator array in registers only if every index is a constant from the
// start. It unrolls an ordinary loop too late: each accumulator is then spilled in every step, at half the speed.
#pragma once

#include <type_traits>
#include <utility>

namespace lamina {

#define LAMINA_INLINE __attribute__((always_inline))
#define LAMINA_NOINLINE __attribute__((noinline))

// Calls body(integral_constant<int, 0>) ... body(integral_constant<int, kCount - 1>).
template <int kCount, class Body>
LAMINA_INLINE constexpr void unroll(const Body& body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) LAMINA_INLINE {
    (body(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// Returns the value, which as far as the compiler knows an empty instruction has changed. The value therefore stays
// in a register, and the steps keep their source order. Without this function GCC 12 hoists all loads of a step and
// spills accumulators for them: 14 instead of 21 MACs a cycle in gemm_int8_avx2 (2026-11, Xeon at 3.3 GHz, 64 x 4096
// x 4096).
template <class Vector>
LAMINA_INLINE inline Vector in_order(Vector value) {
#if !defined(LAMINA_USE_SIMDE)  // SIMDe's vectors have no register
  __asm__ volatile("" : "+v"(value));
#endif
  return value;
}

// Returns the address, which the compiler no longer knows. It therefore loads from there again, where keeping the value in a
// register would spill another one.
template <class Value>
LAMINA_INLINE inline const Value* load_again(const Value* address) {
  __asm__ volatile("" : "+r"(address));
  return address;
}

}  // namespace lamina
