// The register file of an SM, where warpgroups hand registers to each other (raise_registers, lower_registers).
#pragma once

namespace lamina::dev {

// Whether a block starts with enough registers to give each math thread `math` and each other thread `other` of them. It
// starts with an equal number for each thread, a multiple of 8, and owns no others: setmaxnreg.inc would wait forever.
constexpr bool owns_registers(int math_threads, int math, int other_threads, int other) {
  constexpr int kRegisters = 65536, kMost = 255;  // of an SM; of a thread
  const int threads = math_threads + other_threads;
  const int at_start = kRegisters / threads / 8 * 8;
  return math_threads * math + other_threads * other <=
         (at_start < kMost ? at_start : kMost) * threads;
}

static_assert(owns_registers(256, 232, 128, 40) && !owns_registers(256, 232, 128, 48));

}  // namespace lamina::dev
