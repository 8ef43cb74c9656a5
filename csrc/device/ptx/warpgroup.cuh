// Roles of warps: the election of one lane of a warp, and the register count of a warpgroup. Emulator: emu/warpgroup.h
#pragma once

#include "device/types.h"

namespace lamina::dev {

// elect.sync _|d, 0xffffffff;                                             PTX ISA 8.0, sm_90
// True for one lane of the warp, always the same lane. All 32 lanes call it.
LAMINA_DEVICE bool elect_one() {
  uint32_t d;
  asm volatile(
      "{\n.reg .pred p;\nelect.sync _|p, %1;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(d)
      : "r"(kFullWarp)
      : "memory");
  return d != 0;
}

// setmaxnreg.{inc,dec}.sync.aligned.u32 kRegisters;                       PTX ISA 8.0, sm_90a
// Sets the number of registers of each thread; inc waits until enough registers are free. All warps of a warpgroup
// call it, in a kernel that was compiled for a fixed number of registers.
constexpr bool is_register_count(int count) {
  return count >= 24 && count <= 256 && count % 8 == 0;
}
template <int kRegisters>
LAMINA_DEVICE void raise_registers() {
  static_assert(is_register_count(kRegisters), "a multiple of 8 from 24 to 256");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
LAMINA_DEVICE void lower_registers() {
  static_assert(is_register_count(kRegisters), "a multiple of 8 from 24 to 256");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace lamina::dev
