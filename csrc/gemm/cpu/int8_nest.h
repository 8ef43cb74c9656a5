// The loop nest of products of int8 activations and int8 weights on a CPU, once. An ISA's file defines a Tile and
// instantiates the nest with the Params of its op:
//
//   struct Tile {
//     struct Session                         state of the core while multiply() runs, RAII
//     kTileM, kRowStep                       most rows of one multiply(); the row count is rounded up to kRowStep
//     kTileN                                 most columns that share one epilogue, a multiple of 16
//     kOffset                                constant that pack() adds to every activation
//     static strip(rows)                     columns that share one epilogue, for this number of rows
//     static tiles_at_once(rows)             tiles of 16 columns in one multiply(), for this number of rows
//     static packed_bytes(rows)              bytes of `rows` packed rows in one tile of k, 64 activations each
//     static pack(a, a_stride, rows, k, packed)
//         pads k to whole tiles; the weights of the padding are 0
//     static multiply(rows, packed, w, w_stride, tiles_n, tiles_k, acc, accumulate, ahead)
//         acc[rows][kTileN] (+)= panel * weight tiles; w_stride: bytes between tiles of adjacent n. k starts at a
//         multiple of kBlockTilesK, or at a group, which pack() packed by itself. multiply() may write garbage to the
//         rows of acc between `rows` and the next multiple of kRowStep.
//     with_weights(params, n0, tiles_k, body)
//         calls body(the Product of these columns, their weights). A Product has tiles_at_once and multiply of above
//         and kWeightBytes, the bytes of 16 columns x 64 input features; mostly it is the Tile itself
//   };
//
// The rows of a block are packed once, in panels of up to kTileM rows, and stay in L2. A strip of columns is computed
// in blocks of k. If there is only one panel, the activations of a block stay in L1 while the weights pass; else the
// weights of a block stay in L1 while the panels pass. Everything has internal linkage: each ISA compiles its own
// copy with its own flags, and the linker must not merge them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/int_math.h"
#include "base/unroll.h"
#include "gemm/cpu/plan.h"
#include "gemm/cpu/prefetch.h"
#include "gemm/cpu/store_strip.h"
#include "gemm/cpu/weights_of.h"
#include "gemm/int8_sums.h"
#include "layout/int8_tile.h"

namespace lamina::gemm {
namespace {

// 512 input features: 64 columns of weights are 32 KiB, the L1d of every AVX2 machine.
inline constexpr int64_t kBlockTilesK = 8;
inline constexpr int64_t kBlockK = kBlockTilesK * int8_tile::kTileK;
inline constexpr int64_t kChunkTilesK = kMaxExactK / int8_tile::kTileK;
static_assert(kChunkTilesK % kBlockTilesK == 0, "a chunk is whole blocks");
inline constexpr int64_t kGroupTilesK = kScaleGroup / int8_tile::kTileK;

struct NoSession {};

// Adds the scaled sums of a group to its k chunk. Not inlined, for the reason in gemm/cpu/row_steps.h.
LAMINA_NOINLINE void add_products(const int32_t* __restrict acc, int32_t zero,
                                  const int32_t* __restrict sum, float a_scale,
                                  const float* __restrict w_scale, int count, float* __restrict y) {
  for (int j = 0; j < count; ++j)
    y[j] = add_group(correct(acc[j], zero, sum[j]), a_scale, w_scale[j], y[j]);
}

// Panels of equal height: 16 rows are 4 x 4, not 5 + 5 + 5 + 1.
template <class Tile>
constexpr int64_t even_panel_rows(int64_t rows) {
  return round_up(ceil_div(rows, ceil_div(rows, Tile::kTileM)), Tile::kRowStep);
}

template <class Params, class Tile>
using Int8Strip = StoreStrip<Params, Tile::kTileN, int8_tile::kTileN, Tile::kOffset>;

template <class Params, class Tile>
struct Int8Nest : Int8Strip<Params, Tile> {
  using Strip = Int8Strip<Params, Tile>;
  using Columns = typename Strip::Columns;
  using Strip::p;

  const Block& block;
  const int64_t tiles_k;
  int8_t* const packed;
  int32_t* const acc;
  int64_t* const wide_acc;  // used only when k > kMaxExactK
  float* const k_chunk;     // k_chunk and total share its place; used only with scales along k
  float* const total;

  static int64_t packed_panel_bytes(int64_t tiles_k) {
    return tiles_k * Tile::packed_bytes(Tile::kTileM);
  }

  static int64_t panel_bytes(const Problem& problem) {
    const int64_t tiles_k = int8_tile::tiles_k(problem.k);
    const bool has_more = tiles_k > kChunkTilesK || problem.is_grouped();
    return packed_panel_bytes(tiles_k) +
           int64_t{Tile::kTileM} * Tile::kTileN * (has_more ? 4 + 8 : 4);
  }

  Int8Nest(const Params& params, const Block& where, void* scratch)
      : Strip{params},
        block(where),
        tiles_k(int8_tile::tiles_k(params.problem.k)),
        packed(static_cast<int8_t*>(scratch)),
        acc(reinterpret_cast<int32_t*>(packed +
                                       where.panel_m / Tile::kTileM * packed_panel_bytes(tiles_k))),
        wide_acc(reinterpret_cast<int64_t*>(acc + where.panel_m * Tile::kTileN)),
        k_chunk(reinterpret_cast<float*>(wide_acc)),
        total(k_chunk + where.panel_m * Tile::kTileN) {}

  struct Panel {
    int64_t index, row;
    int rows;
    int8_t* packed;
  };

  template <class Body>
  void for_panels(int64_t rows, const Body& body) const {
    const int64_t each = even_panel_rows<Tile>(rows), bytes = packed_panel_bytes(tiles_k);
    for (int64_t i = 0, row = 0; row < rows; ++i, row += each)
      body(Panel{i, row, static_cast<int>(std::min(each, rows - row)), packed + i * bytes});
  }

  // acc[rows][kTileN] = a[m0 .. m0 + rows, k] * w[n0 .. n0 + 16 tiles_n, k]. The result is in wide_acc if k >
  // kMaxExactK, and in total, scaled, with scales along k.
  template <class Product>
  void multiply_strip(int64_t m0, int64_t n0, int tiles_n, int64_t rows, const int8_t* w) {
    constexpr int64_t kBytes = Product::kWeightBytes;
    const int64_t w_stride = tiles_k * kBytes;
    const int64_t panels = ceil_div(rows, even_panel_rows<Tile>(rows));
    const bool is_grouped = p.problem.is_grouped();
    const int64_t step = is_grouped ? kGroupTilesK : panels == 1 ? kChunkTilesK : kBlockTilesK;
    const int at_once = Product::tiles_at_once(rows);
    if (tiles_k == 0) std::fill_n(acc, rows * Tile::kTileN, 0);
    if (is_grouped) std::fill_n(total, rows * Tile::kTileN, empty_sum(p.problem.groups()));
    for (int64_t k0 = 0; k0 < tiles_k; k0 += step) {
      const int64_t count = std::min(step, tiles_k - k0);
      for (int tile = 0; tile < tiles_n; tile += at_once) {
        const int8_t* const at = w + tile * w_stride + k0 * kBytes;
        // The weights of the next multiply(): more columns of this block of k, else the next block, else the next
        // strip, which belongs to this task or most likely to the next task.
        const bool block_ends = tile + at_once >= tiles_n, strip_ends = k0 + count == tiles_k;
        const int8_t* const next =
            !block_ends ? at + at_once * w_stride
                        : w + (strip_ends ? tiles_n * w_stride : (k0 + step) * kBytes);
        const bool is_last =
            block_ends && strip_ends && n0 + tiles_n * int8_tile::kTileN >= p.problem.n;
        for_panels(rows, [&](const Panel& panel) {
          Product::multiply(panel.rows, panel.packed + k0 * Tile::packed_bytes(panel.rows), at,
                            w_stride, std::min(at_once, tiles_n - tile), count,
                            acc + panel.row * Tile::kTileN + tile * int8_tile::kTileN,
                            !is_grouped && k0 % kChunkTilesK != 0,
                            panels == 1
                                ? ahead_of(at, w + tile * w_stride, w_stride, at_once)
                                : share(is_last ? at : next, count * kBytes, panel.index, panels));
        });
      }
      if (is_grouped) {
        add_group(k0 / kGroupTilesK, m0, rows, n0, tiles_n * int8_tile::kTileN);
        continue;
      }
      const bool chunk_ends = k0 + count == tiles_k || (k0 + count) % kChunkTilesK == 0;
      if (tiles_k > kChunkTilesK && chunk_ends) {
        const bool first = k0 < kChunkTilesK;
        for (int64_t i = 0; i < rows * Tile::kTileN; ++i)
          wide_acc[i] = (first ? 0 : wide_acc[i]) + acc[i];
      }
    }
  }

  // Adds the sums of group g, which are in acc, to the k chunk; adds the k chunk to the total when the k chunk ends.
  void add_group(int64_t g, int64_t m0, int64_t rows, int64_t n0, int count) {
    const Broadcast<float> a_scale = p.a_scale_of(g), w_scale = p.w_scale_of(g);
    const int64_t there = std::min<int64_t>(count, p.problem.n - n0);
    alignas(64) float scale[Tile::kTileN] = {};
    alignas(64) int32_t sum[Tile::kTileN] = {};
    for (int64_t j = 0; j < there; ++j) {
      scale[j] = w_scale[n0 + j];
      sum[j] = p.w_sums[g * p.problem.n + n0 + j];
    }
    const bool begins = g % kChunkGroups == 0;
    const bool ends = (g + 1) % kChunkGroups == 0 || g + 1 == p.problem.groups();
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * Tile::kTileN;
      if (begins) std::fill_n(k_chunk + at, count, kNoSum);
      add_products(acc + at, this->zero_point(m0 + r), sum, a_scale[m0 + r], scale, count,
                   k_chunk + at);
      if (ends)
        for (int j = 0; j < count; ++j) total[at + j] += k_chunk[at + j];
    }
  }

  // A single panel prefetches its own weights, from those ahead of `at` on, which is in the first of the streams that
  // are read side by side.
  static Prefetch ahead_of(const int8_t* at, const int8_t* stream, int64_t stride, int tiles) {
    const StreamAhead ahead(stream, stride, tiles);
    return {at + ahead(at), 1, 0, stream + stride, (tiles - 1) * stride};
  }

  // Each of several panels prefetches its part of the next `bytes` of weights, while it multiplies as many.
  static Prefetch share(const int8_t* next, int64_t bytes, int64_t index, int64_t panels) {
    const int64_t groups = bytes / 64, lines = ceil_div(groups, panels);
    return {next + index * lines * 64, static_cast<int>(groups / lines)};
  }

  Columns load_columns(int64_t n0, int count) const {
    Columns c;
    this->load_bias(n0, count, c);
    if (p.problem.is_grouped()) return c;  // add_group has applied them
    for (int j = 0; j < count; ++j) {
      c.scale[j] = p.w_scale[n0 + j];
      c.sum[j] = p.w_sums[n0 + j];
    }
    return c;
  }

  // Each group is multiplied by itself, so it is packed by itself too.
  void pack(const int8_t* a, const Panel& panel) const {
    const int64_t k = p.problem.k,
                  each = p.problem.is_grouped() ? kScaleGroup : std::max<int64_t>(k, 1);
    int8_t* to = panel.packed;
    for (int64_t first = 0; first < k;
         first += each, to += kGroupTilesK * Tile::packed_bytes(panel.rows))
      Tile::pack(a + first, p.a_stride, panel.rows, std::min(each, k - first), to);
  }

  void run() {
    [[maybe_unused]] const typename Tile::Session session;
    for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += block.panel_m) {
      const int64_t rows = std::min(block.panel_m, block.m_end - m0);
      if (!block.is_packed)
        for_panels(rows,
                   [&](const Panel& panel) { pack(p.a + (m0 + panel.row) * p.a_stride, panel); });
      const int strip = Tile::strip(rows);
      for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += strip) {
        const int count = static_cast<int>(std::min<int64_t>(strip, block.n_end - n0));
        Tile::with_weights(p, n0, tiles_k, [&]<class Product>(WeightsOf<Product> weights) {
          multiply_strip<Product>(m0, n0, static_cast<int>(int8_tile::tiles_n(count)), rows,
                                  reinterpret_cast<const int8_t*>(weights.at));
        });
        const Columns columns = load_columns(n0, count);
        if (p.problem.is_grouped()) {
          this->store(total, m0, rows, n0, count, columns);
        } else if (tiles_k > kChunkTilesK) {
          this->store(wide_acc, m0, rows, n0, count, columns);
        } else {
          this->store(acc, m0, rows, n0, count, columns);
        }
      }
    }
  }
};

}  // namespace
}  // namespace lamina::gemm
