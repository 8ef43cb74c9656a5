// The loop nest of gemm_int4 on a CPU, once. An ISA's file defines a Tile and instantiates the nest:
//
//   struct Tile {
//     kTileM                     most rows of one multiply()
//     kTileN                     columns of a strip, a multiple of 16
//     kBlockK                    input features whose weights lie in L1 as f32, a multiple of 64
//     dequantize(line, scale, minus_zero_scale, to)   turns 64 bytes of int4_rows into to[8 k][16 columns]
//     multiply(Step)             y += a * w, in the order of k
//     multiply_lines(Lines)      the same for up to kFewRows rows, with weights unpacked into registers
//   };
//
// The nest works on one block of k at a time: it dequantizes the block's weights to f32 in L1, then all packed rows
// pass. Up to kFewRows rows unpack weights into registers instead. Everything has internal linkage: see
// gemm/cpu/int8_nest.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/int_math.h"
#include "base/unroll.h"
#include "gemm/cpu/plan.h"
#include "gemm/cpu/store_strip.h"
#include "layout/int4.h"
#include "ops/gemm_int4/gemm_int4.h"
#include "quant/group_columns.h"

namespace lamina::gemm_int4 {
namespace {

// A line of int4_rows: 8 k of 16 columns.
inline constexpr int kLineBytes = 64, kLineK = 8;

// Up to this many rows unpack weights into registers. More rows share the cost of the way through L1, a store and a
// load: with AVX2, registers make one row 1.6 times as fast and four rows no faster (2026-11, Zen 4, 4096 x 4096).
inline constexpr int kFewRows = 3;

// Packed weights are prefetched this many bytes ahead.
inline constexpr int64_t kStreamAhead = 2048;

// The arguments of multiply().
struct Step {
  int rows;
  const float* a;  // [k][rows]
  const float* w;  // [tile of 16 columns][kBlockK][16]
  int tiles_n;
  int64_t k;
  float* y;  // [rows][kTileN]
};

// The arguments of multiply_lines(): lines that lie within one group.
struct Lines {
  int rows;
  const float* a;    // [k][rows]
  const uint8_t* w;  // [tile of 16 columns: w_stride bytes][line]
  int64_t w_stride;
  const float *scale, *minus_zero;  // [kTileN]; minus_zero is -zero point * scale
  int64_t count;
  float* y;  // [rows][kTileN]
};

template <class Tile>
using StripOf = StoreStrip<Params, Tile::kTileN, int4::kTileN>;

template <class Tile>
struct Nest : StripOf<Tile> {
  using StripOf<Tile>::p;
  static constexpr int kTileM = Tile::kTileM, kTileN = Tile::kTileN;
  static constexpr int64_t kBlockK = Tile::kBlockK;
  static constexpr int kTiles = kTileN / int4::kTileN;
  static_assert(kChunkK % kBlockK == 0 && kBlockK % int4::kTileK == 0);

  // Scratch that all panels share: the weights of a block, and the operands of a group.
  struct Shared {
    alignas(64) float weights[kTiles][kBlockK][int4::kTileN];
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

  Nest(const Params& params, const Block& where, void* scratch)
      : StripOf<Tile>{params},
        block(where),
        shared(*static_cast<Shared*>(scratch)),
        packed(reinterpret_cast<float*>(static_cast<Shared*>(scratch) + 1)),
        k_chunk(packed + where.panel_m * params.problem.k),
        total(k_chunk + where.panel_m * kTileN) {}

  struct Panel {
    int64_t row;
    int rows;
    float* packed;
  };

  // Panels of equal height: 8 rows are 4 + 4, not 6 + 2.
  template <class Body>
  void for_panels(int64_t rows, const Body& body) const {
    const int64_t each = ceil_div(rows, ceil_div(rows, int64_t{kTileM}));
    for (int64_t row = 0; row < rows; row += each)
      body(Panel{row, static_cast<int>(std::min(each, rows - row)), packed + row * p.problem.k});
  }

  template <class T>
  LAMINA_NOINLINE static void pack_as(const T* __restrict a, int64_t stride, int rows, int64_t k,
                                      float* __restrict to) {
    for (int r = 0; r < rows; ++r)
      for (int64_t i = 0; i < k; ++i) to[i * rows + r] = to_f32(a[r * stride + i]);
  }

  // The same for the features that perm names. A packed place without a feature keeps its value.
  template <class T>
  LAMINA_NOINLINE static void gather_as(const T* __restrict a, int64_t stride, int rows, int64_t k,
                                        const int32_t* __restrict perm, float* __restrict to) {
    for (int r = 0; r < rows; ++r)
      for (int64_t i = 0; i < k; ++i)
        if (perm[i] >= 0) to[i * rows + r] = to_f32(a[r * stride + perm[i]]);
  }

  void pack(int64_t m0, const Panel& panel) const {
    const int64_t k = p.problem.k;
    if (p.perm.is_given()) std::fill_n(panel.packed, panel.rows * k, 0.0f);
    StripOf<Tile>::with_floats(p.a, p.a_dtype, [&](const auto* a) {
      const auto* const row = a + m0 * p.a_stride;
      if (p.perm.is_given()) {
        gather_as(row, p.a_stride, panel.rows, k, p.perm.data, panel.packed);
      } else {
        pack_as(row, p.a_stride, panel.rows, k, panel.packed);
      }
    });
  }

  // Loads the scales and zero points of one group for columns [n0, n0 + count).
  void load_group(int64_t group, int64_t n0, int count) {
    load_columns(p.w_scale, group, n0, count, 1.0f, shared.scale);
    if (p.w_zero_point.is_given()) {
      load_columns(p.w_zero_point, group, n0, count, -1.0f, shared.minus_zero);
    } else {
      std::fill_n(shared.minus_zero, kTileN, static_cast<float>(-kSymmetricZeroPoint));
    }
    for (int j = 0; j < kTileN; ++j) shared.minus_zero[j] *= shared.scale[j];
  }

  // shared.weights = the weights of [k0, k1). Prefetches the packed weights that lie kStreamAhead bytes later: tiles
  // of equal n are neighbours, and the tiles of the next strip follow, which belongs to this task or most likely to
  // the next task.
  void dequantize(int64_t n0, int count, int64_t k0, int64_t k1) {
    const int64_t group = p.problem.group, w_stride = int4::tiles_k(p.problem.k) * int4::kTileBytes;
    const uint8_t* const w = p.w + n0 / int4::kTileN * w_stride;
    for (int64_t at = k0; at < k1;) {
      const int64_t stop = std::min((at / group + 1) * group, k1);
      load_group(at / group, n0, count);
      for (int t = 0; t < static_cast<int>(int4::tiles_n(count)); ++t)
        for (int64_t k = at; k < stop; k += kLineK) {
          const uint8_t* const line = w + t * w_stride + k / kLineK * kLineBytes;
          __builtin_prefetch(line + kStreamAhead, 0, 2);
          Tile::dequantize(line, shared.scale + t * int4::kTileN,
                           shared.minus_zero + t * int4::kTileN, shared.weights[t][k - k0]);
        }
      at = stop;
    }
  }

  // k_chunk += the products of [k0, k1), with weights in L1.
  void multiply_blocks(int64_t n0, int count, int64_t rows, int64_t k0, int64_t k1) {
    for (int64_t stop; k0 < k1; k0 = stop) {
      stop = std::min(k1, k0 + kBlockK);
      dequantize(n0, count, k0, stop);
      for_panels(rows, [&](const Panel& panel) {
        Tile::multiply(Step{panel.rows, panel.packed + k0 * panel.rows, shared.weights[0][0],
                            static_cast<int>(int4::tiles_n(count)), stop - k0,
                            k_chunk + panel.row * kTileN});
      });
    }
  }

  // The same with weights in registers, for whole lines, a few rows and all columns of a strip.
  void multiply_lines(int64_t n0, int64_t rows, int64_t k0, int64_t k1) {
    const int64_t group = p.problem.group, w_stride = int4::tiles_k(p.problem.k) * int4::kTileBytes;
    for (int64_t stop; k0 < k1; k0 = stop) {
      stop = std::min((k0 / group + 1) * group, k1);
      load_group(k0 / group, n0, kTileN);
      Tile::multiply_lines(Lines{static_cast<int>(rows), packed + k0 * rows,
                                 p.w + n0 / int4::kTileN * w_stride + k0 / kLineK * kLineBytes,
                                 w_stride, shared.scale, shared.minus_zero, (stop - k0) / kLineK,
                                 k_chunk});
    }
  }

  // total[rows][kTileN] = the sums of columns [n0, n0 + count).
  void multiply_strip(int64_t n0, int count, int64_t rows) {
    const int64_t k = p.problem.k;
    const int64_t lines_end = rows <= kFewRows && count == kTileN ? k / kLineK * kLineK : 0;
    std::fill_n(total, rows * kTileN, empty_sum(k));
    for (int64_t k0 = 0; k0 < k; k0 += kChunkK) {
      const int64_t k1 = std::min(k, k0 + kChunkK), middle = std::clamp(lines_end, k0, k1);
      std::fill_n(k_chunk, rows * kTileN, kNoSum);
      multiply_lines(n0, rows, k0, middle);
      multiply_blocks(n0, count, rows, middle, k1);
      add_row(k_chunk, rows * kTileN, total);
    }
  }

  void run() {
    for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += block.panel_m) {
      const int64_t rows = std::min(block.panel_m, block.m_end - m0);
      if (!block.is_packed)
        for_panels(rows, [&](const Panel& panel) { pack(m0 + panel.row, panel); });
      for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kTileN) {
        const int count = static_cast<int>(std::min<int64_t>(kTileN, block.n_end - n0));
        multiply_strip(n0, count, rows);
        typename StripOf<Tile>::Columns columns;
        this->load_bias(n0, count, columns);
        this->store(total, m0, rows, n0, count, columns);
      }
    }
  }
};

template <class Tile>
CpuKernel make_kernel(const char* name, Isa isa, int64_t min_m, int macs_per_cycle) {
  CpuKernel kernel = cpu_kernel<Nest<Tile>, Tile, Params>(name, isa, min_m, macs_per_cycle);
  kernel.group_step = kInt4GroupStep;
  kernel.scratch_bytes = sizeof(typename Nest<Tile>::Shared);
  return kernel;
}

}  // namespace
}  // namespace lamina::gemm_int4
