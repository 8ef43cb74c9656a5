// Products of small matrices on the tensor cores, where a is 2:4 sparse: of every four elements along k, a holds two.
// All 32 lanes call each function; layout/sparse_fragment.h says which elements of a matrix a lane holds and which of them its
// metadata describes. Emulator: emu/mma_sparse.h
#pragma once

#include "device/types.h"

namespace lamina::dev {

// mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 d, a, b, d, metadata, 0;   PTX ISA 8.5, sm_80
// d[16,8] += a[16,64] * b[64,8]; sums wrap modulo 2^32. All lanes give metadata.
LAMINA_DEVICE void mma_sparse_m16n8k64_s8(int32_t (&d)[4], const uint32_t (&a)[4],
                                          const uint32_t (&b)[4], uint32_t metadata) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, 0;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),
        "r"(metadata));
}

// mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{f16.f16,bf16.bf16}.f32 d, a, b, d, metadata, kSelector;
//                                                                         PTX ISA 8.5, sm_80
// d[16,8] += a[16,32] * b[32,8]; the lanes with lane % 4 / 2 == kSelector give metadata. Elements of b that a has no
// element for are not read: a NaN there has no effect. Sums: as for mma_m16n8k16_f16.
#define LAMINA_MMA_SPARSE_M16N8K32(name, types)                                                   \
  template <int kSelector>                                                                        \
  LAMINA_DEVICE void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],          \
                          uint32_t metadata) {                                                    \
    static_assert(kSelector == 0 || kSelector == 1);                                              \
    asm volatile(                                                                                 \
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." types                       \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, "    \
        "%13;"                                                                                    \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), \
          "r"(metadata), "n"(kSelector));                                                         \
  }
LAMINA_MMA_SPARSE_M16N8K32(mma_sparse_m16n8k32_f16, "f16.f16")
LAMINA_MMA_SPARSE_M16N8K32(mma_sparse_m16n8k32_bf16, "bf16.bf16")
#undef LAMINA_MMA_SPARSE_M16N8K32

}  // namespace lamina::dev
