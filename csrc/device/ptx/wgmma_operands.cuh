// The operand lists of wgmma.cuh, once for all types. Operands of inline asm have no names, so the text and the
// operand list of each n repeat the numbers of the n / 2 registers of d.
#pragma once

// F(i, j, k, l) for the registers of an accumulator of n columns, four at a time, after the first four.
#define LAMINA_WGMMA_D_8(F)
#define LAMINA_WGMMA_D_16(F) LAMINA_WGMMA_D_8(F) F(4, 5, 6, 7)
#define LAMINA_WGMMA_D_24(F) LAMINA_WGMMA_D_16(F) F(8, 9, 10, 11)
#define LAMINA_WGMMA_D_32(F) LAMINA_WGMMA_D_24(F) F(12, 13, 14, 15)
#define LAMINA_WGMMA_D_40(F) LAMINA_WGMMA_D_32(F) F(16, 17, 18, 19)
#define LAMINA_WGMMA_D_48(F) LAMINA_WGMMA_D_40(F) F(20, 21, 22, 23)
#define LAMINA_WGMMA_D_56(F) LAMINA_WGMMA_D_48(F) F(24, 25, 26, 27)
#define LAMINA_WGMMA_D_64(F) LAMINA_WGMMA_D_56(F) F(28, 29, 30, 31)
#define LAMINA_WGMMA_D_72(F) LAMINA_WGMMA_D_64(F) F(32, 33, 34, 35)
#define LAMINA_WGMMA_D_80(F) LAMINA_WGMMA_D_72(F) F(36, 37, 38, 39)
#define LAMINA_WGMMA_D_88(F) LAMINA_WGMMA_D_80(F) F(40, 41, 42, 43)
#define LAMINA_WGMMA_D_96(F) LAMINA_WGMMA_D_88(F) F(44, 45, 46, 47)
#define LAMINA_WGMMA_D_104(F) LAMINA_WGMMA_D_96(F) F(48, 49, 50, 51)
#define LAMINA_WGMMA_D_112(F) LAMINA_WGMMA_D_104(F) F(52, 53, 54, 55)
#define LAMINA_WGMMA_D_120(F) LAMINA_WGMMA_D_112(F) F(56, 57, 58, 59)
#define LAMINA_WGMMA_D_128(F) LAMINA_WGMMA_D_120(F) F(60, 61, 62, 63)
#define LAMINA_WGMMA_D_136(F) LAMINA_WGMMA_D_128(F) F(64, 65, 66, 67)
#define LAMINA_WGMMA_D_144(F) LAMINA_WGMMA_D_136(F) F(68, 69, 70, 71)
#define LAMINA_WGMMA_D_152(F) LAMINA_WGMMA_D_144(F) F(72, 73, 74, 75)
#define LAMINA_WGMMA_D_160(F) LAMINA_WGMMA_D_152(F) F(76, 77, 78, 79)
#define LAMINA_WGMMA_D_168(F) LAMINA_WGMMA_D_160(F) F(80, 81, 82, 83)
#define LAMINA_WGMMA_D_176(F) LAMINA_WGMMA_D_168(F) F(84, 85, 86, 87)
#define LAMINA_WGMMA_D_184(F) LAMINA_WGMMA_D_176(F) F(88, 89, 90, 91)
#define LAMINA_WGMMA_D_192(F) LAMINA_WGMMA_D_184(F) F(92, 93, 94, 95)
#define LAMINA_WGMMA_D_200(F) LAMINA_WGMMA_D_192(F) F(96, 97, 98, 99)
#define LAMINA_WGMMA_D_208(F) LAMINA_WGMMA_D_200(F) F(100, 101, 102, 103)
#define LAMINA_WGMMA_D_216(F) LAMINA_WGMMA_D_208(F) F(104, 105, 106, 107)
#define LAMINA_WGMMA_D_224(F) LAMINA_WGMMA_D_216(F) F(108, 109, 110, 111)
#define LAMINA_WGMMA_D_232(F) LAMINA_WGMMA_D_224(F) F(112, 113, 114, 115)
#define LAMINA_WGMMA_D_240(F) LAMINA_WGMMA_D_232(F) F(116, 117, 118, 119)
#define LAMINA_WGMMA_D_248(F) LAMINA_WGMMA_D_240(F) F(120, 121, 122, 123)
#define LAMINA_WGMMA_D_256(F) LAMINA_WGMMA_D_248(F) F(124, 125, 126, 127)

// X(n, the numbers of the operands after d): every n of s32 sums, then the n that only f32 sums have.
#define LAMINA_WGMMA_EVERY_N_OF_S32(X)           \
  X(8, 4, 5, 6, 7, 8, 9, 10, 11)                 \
  X(16, 8, 9, 10, 11, 12, 13, 14, 15)            \
  X(24, 12, 13, 14, 15, 16, 17, 18, 19)          \
  X(32, 16, 17, 18, 19, 20, 21, 22, 23)          \
  X(48, 24, 25, 26, 27, 28, 29, 30, 31)          \
  X(64, 32, 33, 34, 35, 36, 37, 38, 39)          \
  X(80, 40, 41, 42, 43, 44, 45, 46, 47)          \
  X(96, 48, 49, 50, 51, 52, 53, 54, 55)          \
  X(112, 56, 57, 58, 59, 60, 61, 62, 63)         \
  X(128, 64, 65, 66, 67, 68, 69, 70, 71)         \
  X(144, 72, 73, 74, 75, 76, 77, 78, 79)         \
  X(160, 80, 81, 82, 83, 84, 85, 86, 87)         \
  X(176, 88, 89, 90, 91, 92, 93, 94, 95)         \
  X(192, 96, 97, 98, 99, 100, 101, 102, 103)     \
  X(208, 104, 105, 106, 107, 108, 109, 110, 111) \
  X(224, 112, 113, 114, 115, 116, 117, 118, 119) \
  X(240, 120, 121, 122, 123, 124, 125, 126, 127) \
  X(256, 128, 129, 130, 131, 132, 133, 134, 135)
#define LAMINA_WGMMA_OTHER_N_OF_F32(X)           \
  X(40, 20, 21, 22, 23, 24, 25, 26, 27)          \
  X(56, 28, 29, 30, 31, 32, 33, 34, 35)          \
  X(72, 36, 37, 38, 39, 40, 41, 42, 43)          \
  X(88, 44, 45, 46, 47, 48, 49, 50, 51)          \
  X(104, 52, 53, 54, 55, 56, 57, 58, 59)         \
  X(120, 60, 61, 62, 63, 64, 65, 66, 67)         \
  X(136, 68, 69, 70, 71, 72, 73, 74, 75)         \
  X(152, 76, 77, 78, 79, 80, 81, 82, 83)         \
  X(168, 84, 85, 86, 87, 88, 89, 90, 91)         \
  X(184, 92, 93, 94, 95, 96, 97, 98, 99)         \
  X(200, 100, 101, 102, 103, 104, 105, 106, 107) \
  X(216, 108, 109, 110, 111, 112, 113, 114, 115) \
  X(232, 116, 117, 118, 119, 120, 121, 122, 123) \
  X(248, 124, 125, 126, 127, 128, 129, 130, 131)
