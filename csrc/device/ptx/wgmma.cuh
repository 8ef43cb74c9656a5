// Asynchronous products of a warpgroup (four warps, the first with a multiple of four as its index): d[64,n] (+)=
// a[64,k] * b[k,n]. d is in registers, b in shared memory, a in either. layout/fragment.h says which elements of a
// matrix a thread holds, layout/matrix_descriptor.h where elements lie in shared memory. Emulator: emu/wgmma.h
//
//   wgmma_fence_registers(d), wgmma_fence()    orders the earlier accesses to d and to a in registers
//   wgmma_m64k32_s8<n>(d, a, b, accumulate)    any number of products; products of one shape may share d
//   wgmma_commit()
//   wgmma_wait<0>(), wgmma_fence_registers(d)  from here on d may be used, and a and b overwritten
//
// Shared memory that threads wrote needs fence_proxy_async() and a barrier first; shared memory that TMA wrote does
// not.
#pragma once

#include <type_traits>

#include "device/ptx/wgmma_operands.cuh"
#include "device/types.h"
#include "layout/matrix_descriptor.h"

namespace lamina::dev {
namespace detail {

inline constexpr char kS8S8[] = "s32.s8.s8", kU8U8[] = "s32.u8.u8", kS8U8[] = "s32.s8.u8",
                      kU8S8[] = "s32.u8.s8", kF16F16[] = "f32.f16.f16",
                      kBf16Bf16[] = "f32.bf16.bf16";

constexpr bool is_wgmma_n_of_s32(int n) { return n >= 8 && n <= 256 && n % (n < 32 ? 8 : 16) == 0; }
constexpr bool is_wgmma_n_of_f32(int n) { return n >= 8 && n <= 256 && n % 8 == 0; }

#define LAMINA_TEXT(i, j, k, l) ", %" #i ", %" #j ", %" #k ", %" #l
#define LAMINA_S32(i, j, k, l) , "+r"(d[i]), "+r"(d[j]), "+r"(d[k]), "+r"(d[l])
#define LAMINA_F32(i, j, k, l) , "+f"(d[i]), "+f"(d[j]), "+f"(d[k]), "+f"(d[l])
// scale-d is a predicate, so each statement makes a predicate of a register.
#define LAMINA_WGMMA(n, k, types, accumulate, operands) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #accumulate      \
  ", 0;\n"                                              \
  "wgmma.mma_async.sync.aligned.m64n" #n k ".%" #types  \
  " {%0, %1, %2, %3" LAMINA_WGMMA_D_##n(LAMINA_TEXT) "}, " operands ";\n}"

template <int kN, const auto& kTypes>
LAMINA_DEVICE void wgmma_k32(int32_t (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(is_wgmma_n_of_s32(kN), "n is 8, 16, 24, 32, 48, 64, ... 256");
#define LAMINA_CASE(n, i0, i1, i2, i3, ...)                                                     \
  if constexpr (kN == n)                                                                        \
    asm volatile(LAMINA_WGMMA(n, "k32", i3, i2, "%" #i0 ", %" #i1 ", p")                        \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])LAMINA_WGMMA_D_##n(LAMINA_S32) \
                 : "l"(a), "l"(b), "r"(int{accumulate}), "C"(kTypes));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASE)
#undef LAMINA_CASE
}

template <int kN, const auto& kTypes>
LAMINA_DEVICE void wgmma_k32(int32_t (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate) {
  static_assert(is_wgmma_n_of_s32(kN), "n is 8, 16, 24, 32, 48, 64, ... 256");
#define LAMINA_CASE(n, i0, i1, i2, i3, i4, i5, i6, ...)                                         \
  if constexpr (kN == n)                                                                        \
    asm volatile(                                                                               \
        LAMINA_WGMMA(n, "k32", i6, i5, "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p") \
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])LAMINA_WGMMA_D_##n(LAMINA_S32)          \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}), "C"(kTypes));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASE)
#undef LAMINA_CASE
}

template <int kN, bool kTransA, bool kTransB, const auto& kTypes>
LAMINA_DEVICE void wgmma_k16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(is_wgmma_n_of_f32(kN), "n is 8, 16, 24, ... 256");
#define LAMINA_CASE(n, i0, i1, i2, i3, i4, i5, ...)                                             \
  if constexpr (kN == n)                                                                        \
    asm volatile(LAMINA_WGMMA(n, "k16", i5, i2, "%" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4) \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])LAMINA_WGMMA_D_##n(LAMINA_F32) \
                 : "l"(a), "l"(b), "r"(int{accumulate}), "n"(int{kTransA}), "n"(int{kTransB}),  \
                   "C"(kTypes));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASE)
  LAMINA_WGMMA_OTHER_N_OF_F32(LAMINA_CASE)
#undef LAMINA_CASE
}

template <int kN, bool kTransB, const auto& kTypes>
LAMINA_DEVICE void wgmma_k16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate) {
  static_assert(is_wgmma_n_of_f32(kN), "n is 8, 16, 24, ... 256");
#define LAMINA_CASE(n, i0, i1, i2, i3, i4, i5, i6, i7)                                     \
  if constexpr (kN == n)                                                                   \
    asm volatile(                                                                          \
        LAMINA_WGMMA(n, "k16", i7, i5,                                                     \
                     "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6) \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])LAMINA_WGMMA_D_##n(LAMINA_F32)     \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int{accumulate}),        \
          "n"(int{kTransB}), "C"(kTypes));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASE)
  LAMINA_WGMMA_OTHER_N_OF_F32(LAMINA_CASE)
#undef LAMINA_CASE
}

#undef LAMINA_WGMMA
#undef LAMINA_F32
#undef LAMINA_S32
#undef LAMINA_TEXT

}  // namespace detail

// MatrixDescriptor::encode(). Addresses and offsets are in bytes, multiples of 16.
LAMINA_DEVICE constexpr uint64_t matrix_descriptor(uint32_t smem_address, int leading_bytes,
                                                   int stride_bytes, Swizzle swizzle) {
  return MatrixDescriptor{smem_address, leading_bytes, stride_bytes, swizzle, 0}.encode();
}

// wgmma.mma_async.sync.aligned.m64n{kN}k32.s32.{s8,u8}.{s8,u8} d, a, b, accumulate;   PTX ISA 8.0, sm_90a
// Both operands are K-major. Without `accumulate` the old d is not used. Sums wrap modulo 2^32.
#define LAMINA_WGMMA_M64K32(name, kTypes)                                                  \
  template <int kN>                                                                        \
  LAMINA_DEVICE void name(int32_t (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) { \
    detail::wgmma_k32<kN, kTypes>(d, a, b, accumulate);                                    \
  }                                                                                        \
  template <int kN>                                                                        \
  LAMINA_DEVICE void name(int32_t (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,        \
                          bool accumulate) {                                               \
    detail::wgmma_k32<kN, kTypes>(d, a, b, accumulate);                                    \
  }
LAMINA_WGMMA_M64K32(wgmma_m64k32_s8, detail::kS8S8)
LAMINA_WGMMA_M64K32(wgmma_m64k32_u8, detail::kU8U8)
LAMINA_WGMMA_M64K32(wgmma_m64k32_s8u8, detail::kS8U8)
LAMINA_WGMMA_M64K32(wgmma_m64k32_u8s8, detail::kU8S8)
#undef LAMINA_WGMMA_M64K32

// wgmma.mma_async.sync.aligned.m64n{kN}k16.f32.{f16.f16,bf16.bf16} d, a, b, accumulate, 1, 1, kTransA, kTransB;
//                                                                         PTX ISA 8.0, sm_90a
// kTransA, kTransB: the matrix in shared memory is MN-major, else K-major. PTX does not define the order of the sums
// and their rounding.
#define LAMINA_WGMMA_M64K16(name, kTypes)                                                \
  template <int kN, bool kTransA = false, bool kTransB = false>                          \
  LAMINA_DEVICE void name(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) { \
    detail::wgmma_k16<kN, kTransA, kTransB, kTypes>(d, a, b, accumulate);                \
  }                                                                                      \
  template <int kN, bool kTransA = false, bool kTransB = false>                          \
  LAMINA_DEVICE void name(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,        \
                          bool accumulate) {                                             \
    static_assert(!kTransA, "a in registers has one layout");                            \
    detail::wgmma_k16<kN, kTransB, kTypes>(d, a, b, accumulate);                         \
  }
LAMINA_WGMMA_M64K16(wgmma_m64k16_f16, detail::kF16F16)
LAMINA_WGMMA_M64K16(wgmma_m64k16_bf16, detail::kBf16Bf16)
#undef LAMINA_WGMMA_M64K16

// wgmma.fence.sync.aligned;                                               PTX ISA 8.0, sm_90a
// Orders earlier accesses of registers before the accesses by later wgmma. Needed before the first wgmma, and after
// each access to d or to a in registers by anything but a wgmma of the same shape.
LAMINA_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// wgmma.commit_group.sync.aligned;                                        PTX ISA 8.0, sm_90a
// Makes a group of this warp's wgmma since the last commit; the group may be empty.
LAMINA_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// wgmma.wait_group.sync.aligned kPending;                                 PTX ISA 8.0, sm_90a
// Waits for all but the kPending newest groups.
template <int kPending>
LAMINA_DEVICE void wgmma_wait() {
  static_assert(kPending >= 0 && kPending <= 7);
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// No instruction, but a barrier for the compiler, which takes the registers of a wgmma for final when the wgmma is
// issued: it may not move an access to them across this call. Needed for d and for a in registers, before
// wgmma_fence() and after wgmma_wait().
template <class T, int kCount>
LAMINA_DEVICE void wgmma_fence_registers(T (&registers)[kCount]) {
  static_assert(sizeof(T) == 4);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(registers[i])::"memory");
    } else {
      asm volatile("" : "+r"(registers[i])::"memory");
    }
  }
}

}  // namespace lamina::dev
