// gemm_int8 / amx_int8: tdpbssd multiplies a 16 x 64 by a 64 x 16 tile of signed bytes exactly,
// 16384 MACs in 16 cycles.
//
// Loads  2 x 2 tiles: 4 KiB of operands for 4 products, 64 bytes a cycle, so both operands must come
//        from L1: 512 k of 32 rows and of 32 columns are 32 KiB.
// Rows   are padded to 16 with zeros when packed; the padding is computed and dropped.
#include "base/amx.h"
#include "ops/gemm_int8/cpu/body.h"

namespace lamina::gemm_int8 {
namespace {

struct Tile {
  using Session = AmxSession;
  static constexpr int kTileM = 2 * kAmxRows;
  static constexpr int kTileN = 2 * int8_tile::kTileN;
  static constexpr int kOffset = 0;
  static constexpr int packed_rows(int rows) { return rows <= kAmxRows ? kAmxRows : 2 * kAmxRows; }
  static constexpr int packed_bytes(int rows) {
    return packed_rows(rows) * int8_tile::kTileK;
  }  // [row][64]

  static void pack(const int8_t* a, int64_t a_stride, int rows, int64_t k, int8_t* packed) {
    const int padded = packed_rows(rows);
    for (int64_t p = 0; p < k; p += int8_tile::kTileK, packed += padded * int8_tile::kTileK) {
      const size_t bytes = static_cast<size_t>(std::min<int64_t>(int8_tile::kTileK, k - p));
      for (int r = 0; r < padded; ++r) {
        int8_t* const out = packed + r * int8_tile::kTileK;
        if (r >= rows || bytes < int8_tile::kTileK) std::memset(out, 0, int8_tile::kTileK);
        if (r < rows) std::memcpy(out, a + r * a_stride + p, bytes);
      }
    }
  }

  // Tiles 0..3: sums [row half][column half]; 4, 5: activations; 6, 7: weights.
  template <int kRowTiles, int kColumnTiles>
  static void multiply_fixed(const int8_t* a, const int8_t* w, int64_t w_stride, int64_t tiles_k,
                             int32_t* acc, bool accumulate) {
    constexpr int64_t kStride = kTileN * sizeof(int32_t);
    int32_t* const lower = acc + kAmxRows * kTileN;
    if (accumulate) {
      _tile_loadd(0, acc, kStride);
      if constexpr (kColumnTiles == 2) _tile_loadd(1, acc + 16, kStride);
      if constexpr (kRowTiles == 2) _tile_loadd(2, lower, kStride);
      if constexpr (kRowTiles == 2 && kColumnTiles == 2) _tile_loadd(3, lower + 16, kStride);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t t = 0; t < tiles_k; ++t) {
      _tile_loadd(4, a, int8_tile::kTileK);
      _tile_loadd(6, w, kAmxRowBytes);
      _tile_dpbssd(0, 4, 6);
      if constexpr (kColumnTiles == 2) {
        _tile_loadd(7, w + w_stride, kAmxRowBytes);
        _tile_dpbssd(1, 4, 7);
      }
      if constexpr (kRowTiles == 2) {
        _tile_loadd(5, a + kAmxRows * int8_tile::kTileK, int8_tile::kTileK);
        _tile_dpbssd(2, 5, 6);
        if constexpr (kColumnTiles == 2) _tile_dpbssd(3, 5, 7);
      }
      a += kRowTiles * kAmxRows * int8_tile::kTileK;
      w += int8_tile::kTileBytes;
    }
    _tile_stored(0, acc, kStride);
    if constexpr (kColumnTiles == 2) _tile_stored(1, acc + 16, kStride);
    if constexpr (kRowTiles == 2) _tile_stored(2, lower, kStride);
    if constexpr (kRowTiles == 2 && kColumnTiles == 2) _tile_stored(3, lower + 16, kStride);
  }

  static void multiply(int rows, const int8_t* a, const int8_t* w, int64_t w_stride, int tiles_n,
                       int64_t tiles_k, int32_t* acc, bool accumulate) {
    const auto product = rows <= kAmxRows
                             ? (tiles_n == 1 ? multiply_fixed<1, 1> : multiply_fixed<1, 2>)
                             : (tiles_n == 1 ? multiply_fixed<2, 1> : multiply_fixed<2, 2>);
    product(a, w, w_stride, tiles_k, acc, accumulate);
  }
};

}  // namespace

CpuKernel gemm_int8_amx_int8(int64_t min_m) {
  return make_kernel<Tile>("gemm_int8_amx_int8", Isa::kAmxInt8, min_m, 1024);
}

}  // namespace lamina::gemm_int8
