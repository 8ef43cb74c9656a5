// The instructions by which blocks synchronise through global memory. Emulator: emu/atomic.h
#pragma once

#include "device/types.h"

namespace lamina::dev {

// atom.relaxed.gpu.global.add.s32 d, [at], value;                         PTX ISA 6.0, sm_70
// Returns the old value.
LAMINA_DEVICE int32_t atomic_add(int32_t* at, int32_t value) {
  int32_t d;
  asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], %2;"
               : "=r"(d)
               : "l"(__cvta_generic_to_global(at)), "r"(value)
               : "memory");
  return d;
}

// atom.relaxed.gpu.global.add.f32 d, [at], value;                         PTX ISA 6.0, sm_70
// Rounds to nearest even. PTX says that in global memory subnormals are flushed to zero.
LAMINA_DEVICE float atomic_add(float* at, float value) {
  float d;
  asm volatile("atom.relaxed.gpu.global.add.f32 %0, [%1], %2;"
               : "=f"(d)
               : "l"(__cvta_generic_to_global(at)), "f"(value)
               : "memory");
  return d;
}

// atom.relaxed.gpu.global.cas.b32 d, [at], compare, value;                PTX ISA 6.0, sm_70
// Stores `value` if the old value is `compare`. Returns the old value.
LAMINA_DEVICE int32_t atomic_cas(int32_t* at, int32_t compare, int32_t value) {
  int32_t d;
  asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], %2, %3;"
               : "=r"(d)
               : "l"(__cvta_generic_to_global(at)), "r"(compare), "r"(value)
               : "memory");
  return d;
}

// ld.acquire.gpu.global.s32 d, [at];                                      PTX ISA 6.0, sm_70
// A thread that reads a released value also sees the writer's accesses before the release.
LAMINA_DEVICE int32_t load_acquire(const int32_t* at) {
  int32_t d;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
               : "=r"(d)
               : "l"(__cvta_generic_to_global(at))
               : "memory");
  return d;
}

// st.release.gpu.global.s32 [at], value;                                  PTX ISA 6.0, sm_70
LAMINA_DEVICE void store_release(int32_t* at, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(at)), "r"(value)
               : "memory");
}

// red.release.gpu.global.add.s32 [at], value;                             PTX ISA 6.0, sm_70
LAMINA_DEVICE void reduce_release(int32_t* at, int32_t value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(at)),
               "r"(value)
               : "memory");
}

}  // namespace lamina::dev
