// The AMX instructions on tiles of up to 16 rows x 64 bytes, one instruction a function, with tile numbers as template
// arguments. With LAMINA_USE_SIMDE each function does the same in plain C++, written from Intel SDM vol. 2 (LDTILECFG,
// TILELOADD, TDPBSSD, TDPBF16PS, TILESTORED). Only the CPU kernels include this file.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/numeric.h"

namespace lamina {
namespace {

inline constexpr int kAmxRows = 16;
inline constexpr int kAmxRowBytes = 64;

#if defined(LAMINA_USE_SIMDE)

inline thread_local int8_t amx_tiles[8][kAmxRows][kAmxRowBytes];
inline thread_local uint8_t amx_config[64];

inline void amx_configure(const void* config) {
  std::memcpy(amx_config, config, sizeof amx_config);
  std::memset(amx_tiles, 0, sizeof amx_tiles);
}
inline size_t amx_columns(int tile) { return amx_config[16 + 2 * tile]; }
inline int amx_rows(int tile) { return amx_config[48 + tile]; }
inline void amx_release() {}

template <int kTile>
inline void amx_zero() {
  std::memset(amx_tiles[kTile], 0, sizeof amx_tiles[kTile]);
}

template <int kTile>
inline void amx_load(const void* rows, int64_t stride_bytes) {
  amx_zero<kTile>();
  for (int r = 0; r < amx_rows(kTile); ++r)
    std::memcpy(amx_tiles[kTile][r], static_cast<const char*>(rows) + r * stride_bytes,
                amx_columns(kTile));
}

template <int kTile>
inline void amx_store(void* rows, int64_t stride_bytes) {
  for (int r = 0; r < kAmxRows; ++r)
    std::memcpy(static_cast<char*>(rows) + r * stride_bytes, amx_tiles[kTile][r], kAmxRowBytes);
}

// sum[16][16] s32 += a[16][k] s8 * b[k / 4][16][4] s8
template <int kSum, int kA, int kB>
inline void amx_multiply_s8() {
  for (int i = 0; i < kAmxRows; ++i)
    for (int j = 0; j < kAmxRows; ++j) {
      int32_t total;
      std::memcpy(&total, &amx_tiles[kSum][i][4 * j], sizeof total);
      for (int p = 0; p < static_cast<int>(amx_columns(kA)); ++p)
        total += amx_tiles[kA][i][p] * amx_tiles[kB][p / 4][4 * j + p % 4];
      std::memcpy(&amx_tiles[kSum][i][4 * j], &total, sizeof total);
    }
}

// sum[16][16] f32 += a[16][k] bf16 * b[k / 2][16][2] bf16. The even and the odd products of a row have a sum each, which
// begin with 0 and are added in the end. Subnormal numbers count as 0.
template <int kSum, int kA, int kB>
inline void amx_multiply_bf16() {
  const auto flush = [](float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; };
  const auto element = [&](const int8_t* at) {
    BF16 bits;
    std::memcpy(&bits, at, sizeof bits);
    return flush(to_f32(bits));
  };
  for (int i = 0; i < kAmxRows; ++i)
    for (int j = 0; j < kAmxRows; ++j) {
      float sums[2] = {};
      for (int p = 0; p < static_cast<int>(amx_columns(kA)) / 2; ++p)
        sums[p % 2] = flush(std::fma(element(&amx_tiles[kA][i][2 * p]),
                                     element(&amx_tiles[kB][p / 2][4 * j + 2 * (p % 2)]), sums[p % 2]));
      float total;
      std::memcpy(&total, &amx_tiles[kSum][i][4 * j], sizeof total);
      total = flush(flush(total) + flush(sums[0] + sums[1]));
      std::memcpy(&amx_tiles[kSum][i][4 * j], &total, sizeof total);
    }
}

#else

// The compiler's intrinsics do not serve: they are macros that paste a literal tile number, and GCC 12's intrinsic
// for the configuration does not tell the compiler that the instruction reads all 64 bytes.
inline void amx_configure(const void* config) {
  __asm__ volatile("ldtilecfg %0" : : "m"(*static_cast<const uint8_t (*)[64]>(config)));
}
inline void amx_release() { __asm__ volatile("tilerelease"); }

template <int kTile>
inline void amx_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

template <int kTile>
inline void amx_load(const void* rows, int64_t stride_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(rows), "r"(stride_bytes), "i"(kTile)
                   : "memory");
}

template <int kTile>
inline void amx_store(void* rows, int64_t stride_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(rows), "r"(stride_bytes), "i"(kTile)
                   : "memory");
}

// sum[16][16] s32 += a[16][k] s8 * b[k / 4][16][4] s8
template <int kSum, int kA, int kB>
inline void amx_multiply_s8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// sum[16][16] f32 += a[16][k] bf16 * b[k / 2][16][2] bf16
template <int kSum, int kA, int kB>
inline void amx_multiply_bf16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

#endif

// Configures the tiles, and releases them at the end so that the core can sleep deeply. For products of 64 k all
// tiles have 16 x 64 bytes. For products of 32 k, tiles 4 and 5 (operand a) have 16 x 32 and tiles 6 and 7 (operand
// b) have 8 x 64.
struct AmxSession {
  explicit AmxSession(int product_k = kAmxRowBytes) {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;  // palette
    for (int tile = 0; tile < 8; ++tile) {
      const bool is_a = tile == 4 || tile == 5, is_b = tile >= 6;
      config[16 + 2 * tile] = static_cast<uint8_t>(is_a ? product_k : kAmxRowBytes);
      config[48 + tile] = static_cast<uint8_t>(is_b ? product_k / 4 : kAmxRows);
    }
    amx_configure(config);
  }
  ~AmxSession() { amx_release(); }
  AmxSession(const AmxSession&) = delete;
  AmxSession& operator=(const AmxSession&) = delete;
};

}  // namespace
}  // namespace lamina
