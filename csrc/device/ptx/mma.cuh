// Products of small matrices on the tensor cores. All 32 lanes call each function; layout/fragment.h says which
// elements of a matrix a lane holds. Emulator: emu/mma.h
#pragma once

#include "device/types.h"

namespace lamina::dev {

// mma.sync.aligned.m16n8k32.row.col.s32.{s8,u8}.{s8,u8}.s32 d, a, b, d;   PTX ISA 7.0, sm_80
// d[16,8] += a[16,32] * b[32,8]; sums wrap modulo 2^32.
#define LAMINA_MMA_M16N8K32(name, types)                                                     \
  LAMINA_DEVICE void name(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types                              \
                 ".s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"      \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])                            \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));        \
  }
LAMINA_MMA_M16N8K32(mma_m16n8k32_s8, "s8.s8")
LAMINA_MMA_M16N8K32(mma_m16n8k32_u8, "u8.u8")
LAMINA_MMA_M16N8K32(mma_m16n8k32_s8u8, "s8.u8")
LAMINA_MMA_M16N8K32(mma_m16n8k32_u8s8, "u8.s8")
#undef LAMINA_MMA_M16N8K32

// mma.sync.aligned.m16n8k16.row.col.f32.{f16.f16,bf16.bf16}.f32 d, a, b, d;   PTX ISA 7.0, sm_80
// d[16,8] += a[16,16] * b[16,8]; products are exact. PTX does not define the order of the sums, their rounding and the
// treatment of subnormals.
#define LAMINA_MMA_M16N8K16(name, types)                                                   \
  LAMINA_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." types                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"    \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));      \
  }
LAMINA_MMA_M16N8K16(mma_m16n8k16_f16, "f16.f16")
LAMINA_MMA_M16N8K16(mma_m16n8k16_bf16, "bf16.bf16")
#undef LAMINA_MMA_M16N8K16

}  // namespace lamina::dev
