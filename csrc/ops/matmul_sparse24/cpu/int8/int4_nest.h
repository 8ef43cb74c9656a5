// The loop nest of matmul_sparse24_int4_int8 on a CPU, once, around the Tiles of matmul_sparse24_int8. A Tile also has
// these functions:
//
//     expand_spans(from, spans, to, sums)
//         turns spans of codes into spans of int8 weights, code - 8, and adds the weights of each column to sums[16]
//     add_sums(values, sums)
//         adds the four values of each of 16 columns of a step to sums[16]
//     kScales, kCodesK, add_groups(GroupStep)
//         kScales: whether the Tile scales the sums of groups without zero points itself, in add_groups(); groups with
//         zero points then use multiply(). add_groups() can read codes if a group's part of a block is a multiple of
//         kCodesK input features
//
// A strip of columns passes group by group, because each group has its own scales. The codes of up to kBlockTilesK tiles
// of a group become bytes in L1, in the order of 2:4 int8 weights, then all packed rows pass. A Tile that scales reads the
// codes of a single panel of rows itself, several groups a call.
// A byte is code - 8; without zero points that is the weight before its scale. With zero points, a second product with 1
// in place of each kept code sums the activations that each column keeps. 8 times this sum, added to the first product,
// gives the product with the codes.
// A group starts its own tile of packed activations, so groups may be any multiple of 16. Everything has internal
// linkage: see gemm/cpu/int8_nest.h.
#pragma once

#include <climits>

#include "ops/matmul_sparse24/cpu/int8/int4_bytes.h"
#include "ops/matmul_sparse24/cpu/int8/int4_step.h"
#include "ops/matmul_sparse24/cpu/int8/sparse.h"
#include "quant/group_columns.h"

namespace lamina::matmul_sparse24 {
namespace {

template <class Tile>
struct Int4Nest : StoreStrip<Int4Int8Params, Tile::kTileN, int8_tile::kTileN> {
  using Strip = StoreStrip<Int4Int8Params, Tile::kTileN, int8_tile::kTileN>;
  using Strip::p;
  static constexpr int kTileM = Tile::kTileM, kTileN = Tile::kTileN;
  static constexpr int64_t kMostGroups = 8;  // of one add_groups(): a k chunk, if groups are of 128

  // Scratch that all panels share.
  struct Shared : BlockBytes<Tile> {
    alignas(64) float scale[kMostGroups][kTileN], minus_zero[kTileN];
  };
  using Bytes = typename BlockBytes<Tile>::Bytes;
  static constexpr int64_t kStride = BlockBytes<Tile>::kStride;

  const Block& block;
  Shared& shared;
  int8_t* const packed;
  int32_t* const acc;  // [row][kTileN], and so are the next three
  int32_t* const kept;
  float* const k_chunk;
  float* const total;

  static int64_t group_tiles(const Problem& p) {
    return int8_tile::tiles_k(std::min(p.group, p.k));
  }
  static int64_t packed_panel_bytes(const Problem& p) {
    return p.groups() * group_tiles(p) * Tile::packed_bytes(kTileM);
  }
  static int64_t panel_bytes(const Problem& p) {
    return packed_panel_bytes(p) + int64_t{kTileM} * kTileN * 4 * 4;
  }

  Int4Nest(const Int4Int8Params& params, const Block& where, void* scratch)
      : Strip{params},
        block(where),
        shared(*static_cast<Shared*>(scratch)),
        packed(static_cast<int8_t*>(scratch) + sizeof(Shared)),
        acc(reinterpret_cast<int32_t*>(packed + where.panel_m / kTileM *
                                                    packed_panel_bytes(params.problem))),
        kept(acc + where.panel_m * kTileN),
        k_chunk(reinterpret_cast<float*>(kept + where.panel_m * kTileN)),
        total(k_chunk + where.panel_m * kTileN) {}

  struct Panel {
    int64_t row;
    int rows;
    int8_t* packed;
  };

  template <class Body>
  void for_panels(int64_t rows, const Body& body) const {
    const int64_t each = even_panel_rows<Tile>(rows), bytes = packed_panel_bytes(p.problem);
    for (int64_t i = 0, row = 0; row < rows; ++i, row += each)
      body(Panel{row, static_cast<int>(std::min(each, rows - row)), packed + i * bytes});
  }

  // The packed activations of a panel from tile `tile` of group g on.
  int8_t* packed_at(const Panel& panel, int64_t g, int64_t tile) const {
    return panel.packed + (g * group_tiles(p.problem) + tile) * Tile::packed_bytes(panel.rows);
  }

  int64_t group_end(int64_t g) const { return std::min((g + 1) * p.problem.group, p.problem.k); }

  void pack(int64_t m0, const Panel& panel) const {
    const int8_t* const a = p.a + (m0 + panel.row) * p.a_stride;
    alignas(64) int8_t gathered[kTileM * kBlockK];
    for (int64_t g = 0; g < p.problem.groups(); ++g)
      for (int64_t k0 = g * p.problem.group, tile = 0; k0 < group_end(g);
           k0 += kBlockK, tile += kBlockTilesK) {
        const int64_t count = std::min(kBlockK, group_end(g) - k0);
        int8_t* const to = packed_at(panel, g, tile);
        if (!p.perm.is_given()) {
          Tile::pack(a + k0, p.a_stride, panel.rows, count, to);
          continue;
        }
        // A packed place without a feature gets the row's zero point, so that it counts as 0.
        for (int r = 0; r < panel.rows; ++r)
          for (int64_t i = 0; i < count; ++i) {
            const int32_t feature = p.perm.data[k0 + i];
            gathered[r * kBlockK + i] =
                feature < 0 ? static_cast<int8_t>(this->zero_point(m0 + panel.row + r))
                            : a[r * p.a_stride + feature];
          }
        Tile::pack(gathered, kBlockK, panel.rows, count, to);
      }
  }

  void expand_block(const uint8_t* w, int64_t w_stride, int tiles_n, int64_t k0, int64_t k1) {
    const bool has_zeros = p.w_zero_point.is_given();
    const bool needs_sums = Tile::kOffset != 0 || has_zeros || p.a_zero_point.is_given();
    shared.expand_block(w, w_stride, tiles_n, k0, k1, has_zeros, needs_sums);
  }

  // to (+)= packed activations * the tiles of `bytes`.
  void multiply(const Bytes& bytes, int64_t g, int64_t tile_k, int64_t tiles_k, int tiles_n,
                int64_t rows, int32_t* to) const {
    const int at_once = Tile::tiles_at_once(rows);
    for (int tile = 0; tile < tiles_n; tile += at_once)
      for_panels(rows, [&](const Panel& panel) {
        const int8_t* const w = bytes.tiles + tile * kStride;
        Tile::multiply(panel.rows, packed_at(panel, g, tile_k), w, kStride,
                       std::min(at_once, tiles_n - tile), tiles_k,
                       to + panel.row * kTileN + tile * int8_tile::kTileN, tile_k > 0,
                       Prefetch{w, INT_MAX});
      });
  }

  void prefetch_scales(int64_t g, int64_t n0, int count) const {
    const int64_t groups = p.problem.groups();
    prefetch_columns(p.w_scale, g, groups, n0, count);
    if (p.w_zero_point.is_given()) prefetch_columns(p.w_zero_point, g, groups, n0, count);
  }

  // The scales of `groups` groups from g on, in rows of scale_stride().
  const float* scales(int64_t g, int64_t groups, int64_t n0, int count) {
    if (are_scales_in_place(count))
      return static_cast<const float*>(p.w_scale.data) + g * p.w_scale.group_stride + n0;
    for (int64_t i = 0; i < groups; ++i)
      load_columns(p.w_scale, g + i, n0, count, 1.0f, shared.scale[i]);
    return shared.scale[0];
  }
  bool are_scales_in_place(int count) const {
    return p.w_scale.kind == GroupTensor::Kind::kF32 && p.w_scale.stride == 1 && count == kTileN;
  }
  int64_t scale_stride(int count) const {
    return are_scales_in_place(count) ? p.w_scale.group_stride : kTileN;
  }

  // k_chunk += the scaled sums of `groups` groups from g on without zero points, by a Tile that scales. A single panel of
  // rows reads the codes themselves, where the group's part of a block is whole pieces of kCodesK. Several groups are
  // whole, and each is in one block.
  void add_scaled_groups(int64_t g, int64_t groups, int64_t m0, int64_t n0, int count, int64_t rows,
                         const uint8_t* w, int64_t w_stride) {
    GroupStep step{};
    step.tiles_n = static_cast<int>(int8_tile::tiles_n(count));
    step.sums = shared.codes.sums;
    step.has_zero = p.a_zero_point.is_given();
    step.scale = scales(g, groups, n0, count);
    step.groups = groups;
    step.a_stride = group_tiles(p.problem) * Tile::packed_bytes(static_cast<int>(rows));
    step.scale_stride = scale_stride(count);
    // The sums of a group in one block need no place of their own for each panel, which would leave L1.
    const bool is_whole = group_end(g) - g * p.problem.group <= kBlockK;
    std::fill_n(shared.codes.sums, kTileN, 0);
    for (int64_t k0 = g * p.problem.group, tile = 0; k0 < group_end(g);
         k0 += kBlockK, tile += kBlockTilesK) {
      const int64_t k1 = std::min(k0 + kBlockK, group_end(g));
      step.are_codes = can_read_codes(k0, k1, rows);
      step.w = reinterpret_cast<const uint8_t*>(shared.codes.tiles);
      step.w_stride = kStride;
      if (step.are_codes) {
        step.w = w + k0 / sparse24_rows::kSpanK * kCodeSpanBytes;
        step.w_stride = w_stride;
        step.w_left = w + w_stride - step.w;
      } else {
        expand_block(w, w_stride, step.tiles_n, k0, k1);
      }
      step.spans = ceil_div(k1 - k0, int64_t{sparse24_rows::kSpanK});
      step.accumulate = tile > 0;
      step.ends = k1 == group_end(g);
      for_panels(rows, [&](const Panel& panel) {
        int32_t zero[kTileM];
        for (int r = 0; r < panel.rows; ++r)
          zero[r] = Tile::kOffset + this->zero_point(m0 + panel.row + r);
        const int64_t at = panel.row * kTileN;
        step.rows = panel.rows;
        step.a = packed_at(panel, g, tile);
        step.acc = acc + (is_whole ? 0 : at);
        step.zero = zero;
        step.y = k_chunk + at;
        Tile::add_groups(step);
      });
    }
  }

  static bool can_read_codes(int64_t k0, int64_t k1, int64_t rows) {
    return rows <= kTileM && k0 % sparse24_rows::kSpanK == 0 && (k1 - k0) % Tile::kCodesK == 0;
  }

  // The groups from g to `last`, at most, that one add_groups() takes.
  int64_t groups_at_once(int64_t g, int64_t last, int64_t rows) const {
    const int64_t group = p.problem.group, whole = std::min(last, p.problem.k / group) - g;
    if (group > kBlockK || !can_read_codes(group, 2 * group, rows)) return 1;
    return std::clamp(whole, int64_t{1}, kMostGroups);
  }

  // k_chunk += the scaled sums of group g.
  void add_group(int64_t g, int64_t m0, int64_t n0, int count, int64_t rows, const uint8_t* w,
                 int64_t w_stride) {
    const auto tiles_n = static_cast<int>(int8_tile::tiles_n(count));
    const bool has_zeros = p.w_zero_point.is_given();
    std::fill_n(shared.codes.sums, kTileN, 0);
    std::fill_n(shared.kept.sums, kTileN, 0);
    for (int64_t k0 = g * p.problem.group, tile = 0; k0 < group_end(g);
         k0 += kBlockK, tile += kBlockTilesK) {
      const int64_t k1 = std::min(k0 + kBlockK, group_end(g)),
                    tiles_k = int8_tile::tiles_k(k1 - k0);
      expand_block(w, w_stride, tiles_n, k0, k1);
      multiply(shared.codes, g, tile, tiles_k, tiles_n, rows, acc);
      if (has_zeros) multiply(shared.kept, g, tile, tiles_k, tiles_n, rows, kept);
    }
    load_columns(p.w_scale, g, n0, count, 1.0f, shared.scale[0]);
    if (has_zeros) load_columns(p.w_zero_point, g, n0, count, -1.0f, shared.minus_zero);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t zero = Tile::kOffset + this->zero_point(m0 + r);
      const int64_t at = r * kTileN;
      if (has_zeros) {
        add_zero_points(acc + at, kept + at, zero, shared.codes.sums, shared.kept.sums,
                        shared.minus_zero, shared.scale[0], count, k_chunk + at);
      } else {
        add_products(acc + at, zero, shared.codes.sums, 1.0f, shared.scale[0], count, k_chunk + at);
      }
    }
  }

  // k_chunk += the scaled sums of groups [first, last).
  void add_groups(int64_t first, int64_t last, int64_t m0, int64_t n0, int count, int64_t rows,
                  const uint8_t* w, int64_t w_stride) {
    const int64_t ahead = std::max(kScalesAheadK / p.problem.group, int64_t{1});
    for (int64_t g = first, at_once = 1; g < last; g += at_once) {
      if constexpr (Tile::kScales)
        if (!p.w_zero_point.is_given()) {
          at_once = groups_at_once(g, last, rows);
          for (int64_t i = 0; i < at_once; ++i)
            prefetch_scales(g + i + std::max(at_once, ahead), n0, count);
          add_scaled_groups(g, at_once, m0, n0, count, rows, w, w_stride);
          continue;
        }
      prefetch_scales(g + ahead, n0, count);
      add_group(g, m0, n0, count, rows, w, w_stride);
    }
  }

  // total[rows][kTileN] = the scaled sums of columns [n0, n0 + count).
  void multiply_strip(int64_t m0, int64_t n0, int count, int64_t rows) {
    const int64_t groups = p.problem.groups();
    const int64_t each = gemm_int4_int8::chunk_k(p.problem.group) / p.problem.group;
    const int64_t w_stride = int8_tile::tiles_k(p.problem.k) * sparse24_rows::tile_bytes(4);
    const uint8_t* const w = p.weight.data + n0 / int8_tile::kTileN * w_stride;
    std::fill_n(total, rows * kTileN, empty_sum(groups));
    for (int64_t first = 0; first < groups; first += each) {
      std::fill_n(k_chunk, rows * kTileN, kNoSum);
      add_groups(first, std::min(groups, first + each), m0, n0, count, rows, w, w_stride);
      add_row(k_chunk, rows * kTileN, total);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int j = 0; j < count; ++j) total[r * kTileN + j] *= p.a_scale[m0 + r];
  }

  void run() {
    [[maybe_unused]] const typename Tile::Session session;
    for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += block.panel_m) {
      const int64_t rows = std::min(block.panel_m, block.m_end - m0);
      if (!block.is_packed) for_panels(rows, [&](const Panel& panel) { pack(m0, panel); });
      for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kTileN) {
        const int count = static_cast<int>(std::min<int64_t>(kTileN, block.n_end - n0));
        multiply_strip(m0, n0, count, rows);
        typename Strip::Columns columns;
        this->load_bias(n0, count, columns);
        this->store(total, m0, rows, n0, count, columns);
      }
    }
  }
};

template <class Tile>
constexpr CpuKernel make_int4_kernel(const char* name, Isa isa, int macs_per_cycle) {
  using Nest = Int4Nest<Tile>;
  CpuKernel kernel = cpu_kernel<Nest, Tile, Int4Int8Params>(name, isa, macs_per_cycle);
  kernel.group_step = kInt4GroupStep;
  kernel.scratch_bytes = sizeof(typename Nest::Shared);
  return kernel;
}

}  // namespace
}  // namespace lamina::matmul_sparse24
