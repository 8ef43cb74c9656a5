// Bit tricks, conversions and packed arithmetic in registers. f16 and bf16 are passed as bits; the first element of a
// packed pair is the low half. Emulator: emu/convert.h
#pragma once

#include "device/types.h"

namespace lamina::dev {

// lop3.b32 d, a, b, c, kTable;                                            PTX ISA 4.3, sm_50
// Applies any function f of three bits, bit by bit: kTable = f(0xf0, 0xcc, 0xaa).
template <uint32_t kTable>
LAMINA_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(kTable < 256);
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return d;
}

// prmt.b32 d, a, b, selector;                                             PTX ISA 2.0, sm_20
// Byte i of d is the byte of b:a (b above) whose number is in bits 0 to 2 of nibble i of the selector. If bit 3 of
// the nibble is set, all 8 bits are the sign of that byte.
LAMINA_DEVICE uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t d;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
  return d;
}

// cvt.rn.f16.f32 d, a;                                                    PTX ISA 2.3, sm_53
// Rounds to nearest, ties to even; keeps subnormals; numbers too large become infinite.
LAMINA_DEVICE uint16_t f32_to_f16(float value) {
  uint16_t d;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(value));
  return d;
}

// cvt.f32.f16 d, a;                                                       PTX ISA 2.3, sm_53
LAMINA_DEVICE float f16_to_f32(uint16_t bits) {
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(bits));
  return d;
}

// cvt.rn.bf16.f32 d, a;                                                   PTX ISA 7.0, sm_80
// Rounds to nearest, ties to even.
LAMINA_DEVICE uint16_t f32_to_bf16(float value) {
  uint16_t d;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(value));
  return d;
}

// mov.b32 d, {0, a};                                                      PTX ISA 1.0, sm_10
// A bf16 is the upper half of its f32. cvt.f32.bf16 would need sm_90.
LAMINA_DEVICE float bf16_to_f32(uint16_t bits) {
  float d;
  asm("mov.b32 %0, {%1, %2};" : "=f"(d) : "h"(uint16_t{0}), "h"(bits));
  return d;
}

// cvt.rn.{f16x2,bf16x2}.f32 d, high, low;                                 PTX ISA 7.0, sm_80
// Rounds both to nearest, ties to even; `low` becomes the low half.
LAMINA_DEVICE uint32_t f32_to_f16x2(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
LAMINA_DEVICE uint32_t f32_to_bf16x2(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}

// cvt.rn.f16x2.e4m3x2 d, a;                                               PTX ISA 8.1, sm_89
// Exact; the low byte becomes the low half, and a NaN becomes 0x7fff. Call it only where converts_e4m3().
LAMINA_DEVICE uint32_t e4m3x2_to_f16x2(uint16_t pair) {
  uint32_t d = 0;
#if __CUDA_ARCH__ >= 890
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(d) : "h"(pair));
#endif
  return d;
}
LAMINA_DEVICE constexpr bool converts_e4m3() {
#if __CUDA_ARCH__ >= 890
  return true;
#else
  return false;
#endif
}

// max.f32 d, a, b;                                                        PTX ISA 1.0, sm_10
// The other operand if one is NaN; NaN if both are.
LAMINA_DEVICE float f32_max(float a, float b) {
  float d;
  asm("max.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}

// ex2.approx.ftz.f32 d, a;                                                PTX ISA 1.4, sm_10
// 2^a within 2^-22 of itself. Subnormal operands and results become zeros. 2^0 is 1, 2^-inf is +0, 2^+inf is +inf.
LAMINA_DEVICE float exp2_approx(float a) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(a));
  return d;
}

// lg2.approx.f32 d, a;                                                    PTX ISA 1.4, sm_10
// The binary logarithm, within 2^-22 where a is between 0.5 and 2 and within 2^-22 of itself elsewhere. That of 0 is -inf.
LAMINA_DEVICE float log2_approx(float a) {
  float d;
  asm("lg2.approx.f32 %0, %1;" : "=f"(d) : "f"(a));
  return d;
}

// add.rn.f16x2 d, a, b;                                                   PTX ISA 4.2, sm_53
// Without .rn the compiler might fuse the addition with a multiplication.
LAMINA_DEVICE uint32_t f16x2_add(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// mul.rn.f16x2 d, a, b;                                                   PTX ISA 4.2, sm_53
LAMINA_DEVICE uint32_t f16x2_mul(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

// fma.rn.f16x2 d, a, b, c;                                                PTX ISA 4.2, sm_53
// d = a * b + c, rounded once.
LAMINA_DEVICE uint32_t f16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// fma.rn.bf16x2 d, a, b, c;                                               PTX ISA 7.0, sm_80
// bf16 add and mul would need sm_90.
LAMINA_DEVICE uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// dp4a.s32.s32 d, a, b, c;                                                PTX ISA 5.0, sm_61
// d = c + the sum of four products of signed bytes, modulo 2^32.
LAMINA_DEVICE int32_t dot4_s8(uint32_t a, uint32_t b, int32_t c) {
  int32_t d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

}  // namespace lamina::dev
