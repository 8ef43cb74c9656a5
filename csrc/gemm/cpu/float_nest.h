// The loop nest of products in f32 on a CPU, for weights that become f32 on the way. An ISA's file defines a Tile and
// instantiates the nest with the Params of its op:
//
//   struct Tile {
//     kTileM                     most rows of one multiply()
//     kFewRows                   most rows of one multiply_lines(), at most kTileM
//     kTileN                     columns of a strip, a multiple of 16
//     kBlockK                    input features of a block, whose weights are f32 in cache; a multiple of 64
//     kLineK                     input features of a line, the piece that dequantize() takes
//     kPackK                     activations of a row that lie together: [k / kPackK][rows][kPackK]
//     kHasScales                 whether weights have scales and zero points by groups
//     with_weights(params, n0, body)
//         calls body(the Product of these columns, their weights). A Product has kWeightBytes, the bytes of 16 columns x
//         64 input features, kStreamBytes, the bytes of a line, and what follows; mostly it is the Tile itself
//     dequantize(tile, k, scale, minus_zero_scale, to)
//         turns the line of 16 columns from input feature k on into f32 for multiply(), kLineK x 16 numbers
//     multiply(Step)             y += a * w, in the order of k
//     multiply_lines(Lines)      the same for up to kFewRows rows, with weights unpacked into registers
//   };
//
// The nest works on one block of k at a time: it dequantizes the weights of a strip, then all packed rows pass. They pass
// the whole strip if it fits in L1, else one tile of 16 columns after another. Long blocks load and store sums less often.
// A call of up to kFewRows rows unpacks weights into registers instead. More rows share the cost of storing
// weights to L1 and loading them: with AVX2, registers make one row 1.6 times as fast, and four rows no faster
// (2026-11, Zen 4, 4096 x 4096). Everything has internal linkage: see gemm/cpu/int8_nest.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "base/int_math.h"
#include "base/unroll.h"
#include "gemm/cpu/plan.h"
#include "gemm/cpu/prefetch.h"
#include "gemm/cpu/store_strip.h"
#include "gemm/cpu/weights_of.h"
#include "gemm/float_sums.h"
#include "quant/group_columns.h"

namespace lamina::gemm {
namespace {

inline constexpr int kFloatTileN = 16, kFloatTileK = 64;  // of packed weights

// The arguments of multiply().
struct Step {
  int rows;
  const float* a;  // packed
  const float* w;  // [tile of 16 columns][kBlockK][16]
  int tiles_n;
  int64_t k;
  float* y;  // [rows][kTileN]
};

// The arguments of multiply_lines(): lines that lie within one group.
struct Lines {
  int rows;
  const float* a;    // packed, from the first line on
  const uint8_t* w;  // [tile of 16 columns: w_stride bytes]
  int64_t w_stride;
  StreamAhead ahead;
  int64_t k;                        // the first input feature of the first line
  const float *scale, *minus_zero;  // [kTileN]; minus_zero is -zero point * scale
  int64_t count;
  float* y;  // [rows][kTileN]
};

template <class Params, class Tile>
using FloatStrip = StoreStrip<Params, Tile::kTileN, kFloatTileN>;

template <class Params, class Tile>
struct FloatNest : FloatStrip<Params, Tile> {
  using Strip = FloatStrip<Params, Tile>;
  using Strip::p;
  static constexpr int kTileM = Tile::kTileM, kTileN = Tile::kTileN, kPackK = Tile::kPackK;
  static constexpr int64_t kBlockK = Tile::kBlockK, kLineK = Tile::kLineK;
  static constexpr int kTiles = kTileN / kFloatTileN;
  // From so many rows on, panels pass tile by tile: L1 keeps a tile for them all, where a strip is too large.
  static constexpr int64_t kRowsByTile =
      kTileN * kBlockK * sizeof(float) <= 32 << 10 ? INT64_MAX : int64_t{16};
  static_assert(kChunkK % kBlockK == 0 && kBlockK % kFloatTileK == 0);
  static_assert(kFloatTileK % kLineK == 0 && kLineK % kPackK == 0);

  // Scratch that all panels share: the weights of a block, and the operands of a group.
  struct Shared {
    alignas(64) float weights[kTiles][kBlockK][kFloatTileN];
    alignas(64) float scale[kTileN], minus_zero[kTileN];  // minus_zero is -zero point * scale
  };

  const Block& block;
  Shared& shared;
  float* const packed;
  float* const k_chunk;  // [row][kTileN]
  float* const total;    // [row][kTileN]

  static int64_t panel_bytes(const Problem& p) {
    return (p.k + 2 * kTileN) * kTileM * static_cast<int64_t>(sizeof(float));
  }

  FloatNest(const Params& params, const Block& where, void* scratch)
      : Strip{params},
        block(where),
        shared(*static_cast<Shared*>(scratch)),
        packed(reinterpret_cast<float*>(static_cast<Shared*>(scratch) + 1)),
        k_chunk(packed + where.panel_m * params.problem.k),
        total(k_chunk + where.panel_m * kTileN) {}

  struct Panel {
    int64_t row;
    int rows;
  };

  // Panels of equal height: 8 rows are 4 + 4, not 6 + 2.
  template <class Body>
  void for_panels(int64_t rows, const Body& body) const {
    const int64_t each = ceil_div(rows, ceil_div(rows, int64_t{kTileM}));
    for (int64_t row = 0; row < rows; row += each)
      body(Panel{row, static_cast<int>(std::min(each, rows - row))});
  }

  // Calls body(k0, k1) for each block of [begin, end).
  template <class Body>
  static void for_blocks(int64_t begin, int64_t end, const Body& body) {
    for (int64_t stop; begin < end; begin = stop)
      body(begin, stop = std::min(end, begin + kBlockK));
  }

  // The packed activations of a panel for the block [k0, k1); all panels together have `rows` rows. The panels of a
  // block lie together in the order of the reads, so the processor prefetches them, and they may be larger than L2.
  float* packed_block(const Panel& panel, int64_t rows, int64_t k0, int64_t k1) const {
    return packed + k0 * rows + panel.row * (k1 - k0);
  }

  // Reads all rows side by side, so that it writes in order. k is a multiple of kPackK.
  template <class T, int kRows>
  LAMINA_NOINLINE static void pack_rows(const T* __restrict a, int64_t stride, int64_t k,
                                        float* __restrict to) {
    for (int64_t i = 0; i < k; i += kPackK)
      for (int r = 0; r < kRows; ++r)
        for (int j = 0; j < kPackK; ++j) *to++ = to_f32(a[r * stride + i + j]);
  }

  template <class T>
  static void pack_as(const T* a, int64_t stride, int rows, int64_t k, float* to) {
    [&]<int... kRows>(std::integer_sequence<int, kRows...>) {
      ((rows == kRows + 1 ? pack_rows<T, kRows + 1>(a, stride, k, to) : void()), ...);
    }(std::make_integer_sequence<int, kTileM>());
  }

  static constexpr int64_t packed_at(int rows, int row, int64_t k) {
    return (k / kPackK * rows + row) * kPackK + k % kPackK;
  }

  // The same for the features that perm names. A packed place without a feature keeps its value.
  template <class T>
  LAMINA_NOINLINE static void gather_as(const T* __restrict a, int64_t stride, int rows, int64_t k,
                                        const int32_t* __restrict perm, float* __restrict to) {
    for (int r = 0; r < rows; ++r)
      for (int64_t i = 0; i < k; ++i)
        if (perm[i] >= 0) to[packed_at(rows, r, i)] = to_f32(a[r * stride + perm[i]]);
  }

  void pack(int64_t m0, int64_t rows) const {
    if (p.perm.is_given()) std::fill_n(packed, rows * p.problem.k, 0.0f);
    Strip::with_floats(p.a, p.a_dtype, [&](const auto* a) {
      for_panels(rows, [&](const Panel& panel) {
        const auto* const row = a + (m0 + panel.row) * p.a_stride;
        for_blocks(0, p.problem.k, [&](int64_t k0, int64_t k1) {
          float* const to = packed_block(panel, rows, k0, k1);
          if (p.perm.is_given()) {
            gather_as(row, p.a_stride, panel.rows, k1 - k0, p.perm.data + k0, to);
          } else {
            pack_as(row + k0, p.a_stride, panel.rows, k1 - k0, to);
          }
        });
      });
    });
  }

  // The input features that share scales.
  int64_t group() const { return Tile::kHasScales ? p.problem.group : kChunkK; }

  // Loads the scales and zero points of one group for columns [n0, n0 + count).
  void load_group(int64_t group, int64_t n0, int count) {
    if constexpr (Tile::kHasScales) load_scales(group, n0, count);
  }

  void load_scales(int64_t group, int64_t n0, int count) {
    const int64_t ahead = group + std::max(kScalesAheadK / p.problem.group, int64_t{1});
    prefetch_columns(p.w_scale, ahead, p.problem.groups(), n0, count);
    if (p.w_zero_point.is_given())
      prefetch_columns(p.w_zero_point, ahead, p.problem.groups(), n0, count);
    load_columns(p.w_scale, group, n0, count, 1.0f, shared.scale);
    if (p.w_zero_point.is_given()) {
      load_columns(p.w_zero_point, group, n0, count, -1.0f, shared.minus_zero);
    } else {
      std::fill_n(shared.minus_zero, kTileN, static_cast<float>(-kSymmetricZeroPoint));
    }
    for (int j = 0; j < kTileN; ++j) shared.minus_zero[j] *= shared.scale[j];
  }

  // shared.weights = the weights of [k0, k1).
  template <class Product>
  void dequantize(const uint8_t* w, int64_t n0, int count, int64_t k0, int64_t k1) {
    const int64_t w_stride = stride_of<Product>();
    const StreamAhead ahead(w, w_stride, kTiles);
    for (int64_t at = k0; at < k1;) {
      const int64_t stop = std::min((at / group() + 1) * group(), k1);
      load_group(at / group(), n0, count);
      for (int t = 0; t < tiles_of(count); ++t)
        for (int64_t k = at; k < stop; k += kLineK) {
          const uint8_t* const tile = w + t * w_stride;
          const int64_t line = k * Product::kWeightBytes / kFloatTileK;
          prefetch<Product::kStreamBytes>(tile + line + ahead(w + line));
          Product::dequantize(tile, k, shared.scale + t * kFloatTileN,
                              shared.minus_zero + t * kFloatTileN, shared.weights[t][k - k0]);
        }
      at = stop;
    }
  }

  template <class Product>
  int64_t stride_of() const {
    return ceil_div(p.problem.k, int64_t{kFloatTileK}) * Product::kWeightBytes;
  }

  static int tiles_of(int count) { return static_cast<int>(ceil_div(count, kFloatTileN)); }

  template <int kBytes>
  static void prefetch(const uint8_t* line) {
    for (int at = 0; at < kBytes; at += 64) __builtin_prefetch(line + at, 0, 2);
  }

  // k_chunk += the products of [k0, k1), with weights in L1.
  template <class Product>
  void multiply_blocks(const uint8_t* w, int64_t n0, int count, int64_t rows, int64_t k0,
                       int64_t k1) {
    const int tiles = tiles_of(count), at_once = rows < kRowsByTile ? tiles : 1;
    for_blocks(k0, k1, [&](int64_t begin, int64_t end) {
      dequantize<Product>(w, n0, count, begin, end);
      for (int t = 0; t < tiles; t += at_once)
        for_panels(rows, [&](const Panel& panel) {
          Product::multiply(Step{panel.rows, packed_block(panel, rows, begin, end),
                                 shared.weights[t][0], at_once, end - begin,
                                 k_chunk + panel.row * kTileN + t * kFloatTileN});
        });
    });
  }

  // The same with weights in registers, for whole lines, a few rows and all columns of a strip.
  template <class Product>
  void multiply_lines(const uint8_t* w, int64_t n0, int64_t rows, int64_t k0, int64_t k1) {
    for (int64_t stop; k0 < k1; k0 = stop) {
      stop = std::min((k0 / group() + 1) * group(), k1);
      load_group(k0 / group(), n0, kTileN);
      Product::multiply_lines(Lines{static_cast<int>(rows), packed + k0 * rows, w,
                                    stride_of<Product>(),
                                    StreamAhead(w, stride_of<Product>(), kTiles), k0, shared.scale,
                                    shared.minus_zero, (stop - k0) / kLineK, k_chunk});
    }
  }

  // total[rows][kTileN] = the sums of columns [n0, n0 + count), whose weights start at w.
  template <class Product>
  void multiply_strip(const uint8_t* w, int64_t n0, int count, int64_t rows) {
    const int64_t k = p.problem.k;
    const int64_t lines_end = rows <= Tile::kFewRows && count == kTileN ? k / kLineK * kLineK : 0;
    std::fill_n(total, rows * kTileN, empty_sum(k));
    for (int64_t k0 = 0; k0 < k; k0 += kChunkK) {
      const int64_t k1 = std::min(k, k0 + kChunkK), middle = std::clamp(lines_end, k0, k1);
      std::fill_n(k_chunk, rows * kTileN, kNoSum);
      multiply_lines<Product>(w, n0, rows, k0, middle);
      multiply_blocks<Product>(w, n0, count, rows, middle, k1);
      add_row(k_chunk, rows * kTileN, total);
    }
  }

  void run() {
    for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += block.panel_m) {
      const int64_t rows = std::min(block.panel_m, block.m_end - m0);
      if (!block.is_packed) pack(m0, rows);
      for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kTileN) {
        const int count = static_cast<int>(std::min<int64_t>(kTileN, block.n_end - n0));
        Tile::with_weights(p, n0, [&]<class Product>(WeightsOf<Product> weights) {
          multiply_strip<Product>(weights.at, n0, count, rows);
        });
        typename Strip::Columns columns;
        this->load_bias(n0, count, columns);
        this->store(total, m0, rows, n0, count, columns);
      }
    }
  }
};

template <class Params, class Tile>
constexpr CpuKernel float_kernel(const char* name, Isa isa, int macs_per_cycle) {
  using Nest = FloatNest<Params, Tile>;
  CpuKernel kernel = cpu_kernel<Nest, Tile, Params>(name, isa, macs_per_cycle);
  kernel.group_step = kInt4GroupStep;
  kernel.scratch_bytes = sizeof(typename Nest::Shared);
  kernel.expand_rows = 5;  // a shift, a permutation, a fused multiply-add and two halves of a store
  return kernel;
}

}  // namespace
}  // namespace lamina::gemm
