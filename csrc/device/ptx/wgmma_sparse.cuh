// Asynchronous products of a warpgroup as in wgmma.cuh, where a is 2:4 sparse: of every four elements along k, a holds
// two. Both operands are K-major. a has the layout of a dense operand of half the k, b takes 64 bytes of each column.
// The metadata is a register of each thread (layout/sparse_fragment.h) and must stay unchanged until the wait, like a in
// registers. Emulator: emu/wgmma_sparse.h
#pragma once

#include "device/ptx/wgmma.cuh"

namespace lamina::dev {
namespace detail {

#define LAMINA_TEXT(i, j, k, l) ", %" #i ", %" #j ", %" #k ", %" #l
#define LAMINA_S32(i, j, k, l) , "+r"(d[i]), "+r"(d[j]), "+r"(d[k]), "+r"(d[l])
#define LAMINA_F32(i, j, k, l) , "+f"(d[i]), "+f"(d[j]), "+f"(d[k]), "+f"(d[l])
// scale-d is a predicate, so each statement makes a predicate of a register.
#define LAMINA_WGMMA_SPARSE(n, k, types, accumulate, operands) \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #accumulate             \
  ", 0;\n"                                                     \
  "wgmma.mma_async.sp.sync.aligned.m64n" #n k ".%" #types      \
  " {%0, %1, %2, %3" LAMINA_WGMMA_D_##n(LAMINA_TEXT) "}, " operands ";\n}"

template <int kN>
LAMINA_DEVICE void wgmma_sparse_s8(int32_t (&d)[kN / 2], uint64_t a, uint64_t b,
                                   const uint32_t& metadata, bool accumulate) {
  static_assert(is_wgmma_n_of_s32(kN), "n is 8, 16, 24, 32, 48, 64, ... 256");
#define LAMINA_CASE(n, i0, i1, i2, i3, i4, ...)                                                 \
  if constexpr (kN == n)                                                                        \
    asm volatile(LAMINA_WGMMA_SPARSE(n, "k64", i4, i3, "%" #i0 ", %" #i1 ", %" #i2 ", 0, p")    \
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])LAMINA_WGMMA_D_##n(LAMINA_S32) \
                 : "l"(a), "l"(b), "r"(metadata), "r"(int{accumulate}), "C"(kS8S8));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASE)
#undef LAMINA_CASE
}

template <int kN>
LAMINA_DEVICE void wgmma_sparse_s8(int32_t (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                   const uint32_t& metadata, bool accumulate) {
  static_assert(is_wgmma_n_of_s32(kN), "n is 8, 16, 24, 32, 48, 64, ... 256");
#define LAMINA_CASE(n, i0, i1, i2, i3, i4, i5, i6, i7)                                             \
  if constexpr (kN == n)                                                                           \
    asm volatile(                                                                                  \
        LAMINA_WGMMA_SPARSE(n, "k64", i7, i6,                                                      \
                            "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", %" #i5 ", 0, p")  \
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])LAMINA_WGMMA_D_##n(LAMINA_S32)             \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata), "r"(int{accumulate}), \
          "C"(kS8S8));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASE)
#undef LAMINA_CASE
}

// Operands have no names, and there are numbers for eight behind d. So the selector is a part of the text.
#define LAMINA_CASES(n, ...) LAMINA_CASE(0, n, __VA_ARGS__) LAMINA_CASE(1, n, __VA_ARGS__)

template <int kN, int kSelector, const auto& kTypes>
LAMINA_DEVICE void wgmma_sparse_half(float (&d)[kN / 2], uint64_t a, uint64_t b,
                                     const uint32_t& metadata, bool accumulate) {
  static_assert(is_wgmma_n_of_f32(kN), "n is 8, 16, 24, ... 256");
#define LAMINA_CASE(selector, n, i0, i1, i2, i3, i4, ...)                                          \
  if constexpr (kN == n && kSelector == selector)                                                  \
    asm volatile(LAMINA_WGMMA_SPARSE(n, "k32", i4, i3,                                             \
                                     "%" #i0 ", %" #i1 ", %" #i2 ", " #selector ", p, 1, 1, 0, 0") \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])LAMINA_WGMMA_D_##n(LAMINA_F32)    \
                 : "l"(a), "l"(b), "r"(metadata), "r"(int{accumulate}), "C"(kTypes));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASES)
  LAMINA_WGMMA_OTHER_N_OF_F32(LAMINA_CASES)
#undef LAMINA_CASE
}

template <int kN, int kSelector, const auto& kTypes>
LAMINA_DEVICE void wgmma_sparse_half(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                     const uint32_t& metadata, bool accumulate) {
  static_assert(is_wgmma_n_of_f32(kN), "n is 8, 16, 24, ... 256");
#define LAMINA_CASE(selector, n, i0, i1, i2, i3, i4, i5, i6, i7)                                 \
  if constexpr (kN == n && kSelector == selector)                                                \
    asm volatile(LAMINA_WGMMA_SPARSE(n, "k32", i7, i6,                                           \
                                     "{%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4 ", %" #i5 \
                                     ", " #selector ", p, 1, 1, 0")                              \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])LAMINA_WGMMA_D_##n(LAMINA_F32)  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(metadata),            \
                   "r"(int{accumulate}), "C"(kTypes));
  LAMINA_WGMMA_EVERY_N_OF_S32(LAMINA_CASES)
  LAMINA_WGMMA_OTHER_N_OF_F32(LAMINA_CASES)
#undef LAMINA_CASE
}

#undef LAMINA_CASES
#undef LAMINA_WGMMA_SPARSE
#undef LAMINA_F32
#undef LAMINA_S32
#undef LAMINA_TEXT

}  // namespace detail

// wgmma.mma_async.sp.sync.aligned.m64n{kN}k64.s32.s8.s8 d, a, b, metadata, 0, accumulate;      PTX ISA 8.2, sm_90a
// a: a descriptor or four registers. All threads give metadata. Sums wrap modulo 2^32.
template <int kN>
LAMINA_DEVICE void wgmma_sparse_m64k64_s8(int32_t (&d)[kN / 2], const auto& a, uint64_t b,
                                          const uint32_t& metadata, bool accumulate) {
  detail::wgmma_sparse_s8<kN>(d, a, b, metadata, accumulate);
}

// wgmma.mma_async.sp.sync.aligned.m64n{kN}k32.f32.{f16.f16,bf16.bf16} d, a, b, metadata, kSelector, accumulate, 1, 1,
// 0{, 0};                                                                 PTX ISA 8.2, sm_90a
// a: a descriptor or four registers. The threads with thread % 4 / 2 == kSelector give metadata. Elements of b that a
// has no element for are not read.
#define LAMINA_WGMMA_SPARSE_M64K32(name, kTypes)                                                   \
  template <int kN, int kSelector>                                                                 \
  LAMINA_DEVICE void name(float (&d)[kN / 2], const auto& a, uint64_t b, const uint32_t& metadata, \
                          bool accumulate) {                                                       \
    static_assert(kSelector == 0 || kSelector == 1);                                               \
    detail::wgmma_sparse_half<kN, kSelector, kTypes>(d, a, b, metadata, accumulate);               \
  }
LAMINA_WGMMA_SPARSE_M64K32(wgmma_sparse_m64k32_f16, detail::kF16F16)
LAMINA_WGMMA_SPARSE_M64K32(wgmma_sparse_m64k32_bf16, detail::kBf16Bf16)
#undef LAMINA_WGMMA_SPARSE_M64K32

}  // namespace lamina::dev
