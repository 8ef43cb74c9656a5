// Packed rows times weights in the order of layout/int8_tile.h, with AMX: tdpbssd multiplies a 16 x 64 by a 64 x 16
// tile of signed bytes exactly, 16384 MACs in 16 cycles. Each ISA compiles its own copy: gemm/cpu/int8_nest.h
// says why.
//
// Loads  Above 16 rows, 2 x 2 tiles: 4 products read 4 KiB of operands, 64 bytes a cycle, so both operands must come
//        from L1: 512 k of 32 rows and of 32 columns are 32 KiB. Up to 16 rows, 1 x 4 tiles: four streams of weights,
//        bound by memory.
// Rows   pack() pads rows to 16 with zeros; the padding is multiplied too, and its sums are dropped.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/amx.h"
#include "base/unroll.h"
#include "gemm/cpu/prefetch.h"
#include "layout/int8_tile.h"

namespace lamina::gemm {
namespace {

struct AmxProduct {
  using Session = AmxSession;
  static constexpr int kTileM = 2 * kAmxRows, kRowStep = kAmxRows;
  static constexpr int kTileN = 4 * int8_tile::kTileN;
  static constexpr int strip(int64_t rows) { return rows <= kAmxRows ? kTileN : kTileN / 2; }
  static constexpr int tiles_at_once(int64_t rows) { return strip(rows) / int8_tile::kTileN; }
  static constexpr int packed_rows(int rows) { return rows <= kAmxRows ? kAmxRows : 2 * kAmxRows; }
  static constexpr int packed_bytes(int rows) {
    return packed_rows(rows) * int8_tile::kTileK;
  }  // [row][64]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    constexpr int kRow = int8_tile::kTileK;
    const int padded = packed_rows(rows);
    for (int64_t p = 0; p < k; p += kRow, packed += padded * kRow) {
      if (k - p >= kRow) {
        for (int r = 0; r < rows; ++r) std::memcpy(packed + r * kRow, a + r * a_stride + p, kRow);
        std::memset(packed + rows * kRow, 0, static_cast<size_t>((padded - rows) * kRow));
      } else {
        std::memset(packed, 0, static_cast<size_t>(padded * kRow));
        for (int r = 0; r < rows; ++r)
          std::memcpy(packed + r * kRow, a + r * a_stride + p, static_cast<size_t>(k - p));
      }
    }
  }

  // Multiplies `count` slices of kProductK input features (the depth that the session configured). `first`: the index
  // of the first slice, counted from the start of a; w points at that slice already. Tile registers 0..3 hold the
  // sums [row tile][column tile]; the activations and the weights follow.
  template <int kProductK, int kRowTiles, int kColumnTiles>
  static void multiply_fixed(const int8_t* a, const int8_t* w, int64_t w_stride, int64_t first,
                             int64_t count, int32_t* acc, bool accumulate, Prefetch ahead) {
    constexpr int64_t kStride = kTileN * sizeof(int32_t);
    constexpr int kParts = int8_tile::kTileK / kProductK;
    constexpr int kA = 4, kW = kParts == 1 ? kA + kRowTiles : 6;
    constexpr int kGroups = kProductK / int8_tile::kGroupK;
    const auto for_sums = [&](const auto& body) LAMINA_INLINE {
      unroll<kRowTiles>([&](auto r) LAMINA_INLINE {
        unroll<kColumnTiles>([&](auto c) LAMINA_INLINE {
          body(std::integral_constant<int, r * kColumnTiles + c>{},
               acc + r * kAmxRows * kTileN + c * int8_tile::kTileN);
        });
      });
    };
    for_sums([&](auto sum, int32_t* at) LAMINA_INLINE {
      if (accumulate) {
        amx_load<sum>(at, kStride);
      } else {
        amx_zero<sum>();
      }
    });
    for (int64_t p = first; p < first + count; ++p) {
      const int8_t* const rows =
          a + p / kParts * (kRowTiles * kAmxRows * int8_tile::kTileK) + p % kParts * kProductK;
      ahead.pass<kColumnTiles>(kGroups, w_stride);
      unroll<kColumnTiles>([&](auto c) LAMINA_INLINE {
        constexpr int kWeights = kW + c % (8 - kW);
        amx_load<kWeights>(w + c * w_stride, kAmxRowBytes);
        unroll<kRowTiles>([&](auto r) LAMINA_INLINE {
          if constexpr (c == 0)
            amx_load<kA + r>(rows + r * kAmxRows * int8_tile::kTileK, int8_tile::kTileK);
          amx_multiply_s8<r * kColumnTiles + c, kA + r, kWeights>();
        });
      });
      w += kGroups * kAmxRowBytes;
    }
    for_sums([&](auto sum, int32_t* at) LAMINA_INLINE { amx_store<sum>(at, kStride); });
  }

  template <int kProductK, int kRowTiles, int kColumnTiles>
  static void multiply_columns(int tiles_n, const auto&... arguments) {
    if constexpr (kColumnTiles > 1)
      if (tiles_n < kColumnTiles)
        return multiply_columns<kProductK, kRowTiles, kColumnTiles - 1>(tiles_n, arguments...);
    multiply_fixed<kProductK, kRowTiles, kColumnTiles>(arguments...);
  }

  template <int kProductK>
  static void multiply_products(int rows, int tiles_n, const auto&... arguments) {
    if (rows <= kAmxRows) {
      multiply_columns<kProductK, 1, 4>(tiles_n, arguments...);
    } else {
      multiply_columns<kProductK, 2, 2>(tiles_n, arguments...);
    }
  }

  static void multiply(int rows, const int8_t* a, const int8_t* w, int64_t w_stride, int tiles_n,
                       int64_t tiles_k, int32_t* acc, bool accumulate, Prefetch ahead) {
    multiply_products<int8_tile::kTileK>(rows, tiles_n, a, w, w_stride, int64_t{0}, tiles_k, acc,
                                         accumulate, ahead);
  }
};

}  // namespace
}  // namespace lamina::gemm
