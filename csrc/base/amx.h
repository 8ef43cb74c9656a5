// AMX tiles: the compiler's intrinsics, or with LAMINA_EMULATE functions of the same names in plain
// C++, written from Intel SDM vol. 2 (LDTILECFG, TILELOADD, TDPBSSD, TILESTORED) for tiles of 16
// rows x 64 bytes. Only files under ops/*/cpu include this.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(LAMINA_EMULATE)
#include <immintrin.h>
#endif

namespace lamina {
namespace {

inline constexpr int kAmxRows = 16;
inline constexpr int kAmxRowBytes = 64;

#if defined(LAMINA_EMULATE)

inline thread_local int8_t amx_tiles[8][kAmxRows][kAmxRowBytes];

inline void _tile_loadconfig(const void*) { std::memset(amx_tiles, 0, sizeof amx_tiles); }
inline void _tile_release() {}
inline void _tile_zero(int tile) { std::memset(amx_tiles[tile], 0, sizeof amx_tiles[tile]); }

inline void _tile_loadd(int tile, const void* rows, int64_t stride_bytes) {
  for (int r = 0; r < kAmxRows; ++r)
    std::memcpy(amx_tiles[tile][r], static_cast<const char*>(rows) + r * stride_bytes,
                kAmxRowBytes);
}

inline void _tile_stored(int tile, void* rows, int64_t stride_bytes) {
  for (int r = 0; r < kAmxRows; ++r)
    std::memcpy(static_cast<char*>(rows) + r * stride_bytes, amx_tiles[tile][r], kAmxRowBytes);
}

// sum[16][16] s32 += a[16][64] s8 * b[16][16][4] s8
inline void _tile_dpbssd(int sum, int a, int b) {
  for (int i = 0; i < kAmxRows; ++i)
    for (int j = 0; j < kAmxRows; ++j) {
      int32_t total;
      std::memcpy(&total, &amx_tiles[sum][i][4 * j], sizeof total);
      for (int p = 0; p < kAmxRowBytes; ++p)
        total += amx_tiles[a][i][p] * amx_tiles[b][p / 4][4 * j + p % 4];
      std::memcpy(&amx_tiles[sum][i][4 * j], &total, sizeof total);
    }
}

#endif

// Holds all eight tiles configured as 16 x 64 bytes; releases them so that the core can sleep
// deeply.
struct AmxSession {
  AmxSession() {
    alignas(64) uint8_t config[64] = {};
    config[0] = 1;  // palette
    for (int tile = 0; tile < 8; ++tile) {
      config[16 + 2 * tile] = kAmxRowBytes;
      config[48 + tile] = kAmxRows;
    }
    _tile_loadconfig(config);
  }
  ~AmxSession() { _tile_release(); }
  AmxSession(const AmxSession&) = delete;
  AmxSession& operator=(const AmxSession&) = delete;
};

}  // namespace
}  // namespace lamina
