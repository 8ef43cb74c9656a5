// The loop nest of matmul_sparse24_int4_int8 on a CPU, once, around the Tiles of matmul_sparse24_int8. A Tile also has
// these functions:
//
//     expand_spans(from, spans, to, sums)
//         turns spans of codes into spans of int8 weights, code - 8, and adds the weights of each column to sums[16]
//     add_sums(values, sums)
//         adds the four values of each of 16 columns of a step to sums[16]
//     kScales, kCodesK, add_group(GroupStep)
//         whether the Tile scales the sums of a group without zero points itself; then multiply() is for the others.
//         add_group() reads codes if their input features are a multiple of kCodesK
//
// A strip of columns passes group by group, because each group has its own scales. The codes of up to kBlockTilesK tiles
// of a group become bytes in L1, in the order of 2:4 int8 weights, then all packed rows pass. The way through L1 takes
// about 20 uops for a span, 192 bytes, beside the 16 of its products with one row: 10 bytes a cycle, which memory does
// not give.
// A byte is code - 8, without zero points the whole weight. With zero points a second product with 1 in place of each
// kept code adds the activations that each column keeps; 8 times their sum gives the sum with the codes.
// A group starts its own tile of packed activations, so groups may be any multiple of 16. Everything has internal
// linkage: see gemm/cpu/int8_nest.h.
#pragma once

#include <climits>

#include "ops/matmul_sparse24/cpu/int8/sparse.h"
#include "quant/group_columns.h"

namespace lamina::matmul_sparse24 {
namespace {

inline constexpr int kLineBytes = 64, kHalfK = sparse24_rows::kSpanK / 2;

// y += the scaled sums of a group of codes with zero points; kept[j] is the sum of the activations that column j keeps.
// Not inlined, for the reason in gemm/cpu/row_steps.h.
LAMINA_NOINLINE void add_zero_points(const int32_t* __restrict acc, const int32_t* __restrict kept,
                                     int32_t zero, const int32_t* __restrict sum,
                                     const int32_t* __restrict count,
                                     const float* __restrict minus_zero,
                                     const float* __restrict scale, int columns,
                                     float* __restrict y) {
  for (int j = 0; j < columns; ++j) {
    const int32_t a_sum = correct(kept[j], zero, count[j]);
    const int32_t with_codes = correct(acc[j], -kSymmetricZeroPoint, a_sum);
    const float x = std::fma(minus_zero[j], static_cast<float>(a_sum),
                             static_cast<float>(correct(with_codes, zero, sum[j])));
    y[j] = std::fma(x, scale[j], y[j]);
  }
}

// The arguments of one add_group(), which computes acc (+)= the sums of a block of k of a group for a panel of rows and,
// where the group ends, y += those sums, corrected and scaled.
struct GroupStep {
  int rows;
  const int8_t* a;      // packed
  const uint8_t* w;     // spans of codes or of int8 weights
  bool are_codes;       // whose weights are added to `sums`; int8 weights are added there already
  int64_t w_stride;     // bytes between tiles of adjacent n
  int tiles_n;          // of 16 columns
  int64_t spans;        // of k
  int32_t* acc;         // [rows][kTileN]
  bool accumulate;      // else the group begins here
  bool ends;            // whether the group ends here; only then the members after `sums` count
  int32_t* sums;        // of the weights of each column in this group
  bool has_zero;        // else `zero` is kOffset for all rows
  const int32_t* zero;  // [rows] what is in each activation too much
  const float* scale;   // of each column
  float* y;             // [rows][kTileN]
};

template <class Tile>
struct Int4Nest : StoreStrip<Int4Int8Params, Tile::kTileN, int8_tile::kTileN> {
  using Strip = StoreStrip<Int4Int8Params, Tile::kTileN, int8_tile::kTileN>;
  using Strip::p;
  static constexpr int kTileM = Tile::kTileM, kTileN = Tile::kTileN;
  static constexpr int64_t kStride = kBlockTilesK * kTileBytes;

  // Weights of a block of k as bytes, and the sums over each column of the current group.
  struct Bytes {
    alignas(64) int8_t tiles[kTileN / int8_tile::kTileN * kStride];
    alignas(64) int32_t sums[kTileN];
  };

  // Scratch that all panels share. kept: 1 in place of each code.
  struct Shared {
    Bytes codes, kept;
    alignas(64) float scale[kTileN], minus_zero[kTileN];
  };

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

  // Half a span, 16 input features of 16 columns: the first or the second half of a span in memory and in L1.
  struct Half {
    const uint8_t* from;
    bool is_second_there;
    int8_t* to;  // the span
    bool is_second_here;

    int8_t* values() const {
      return to + sparse24_rows::kIndexBytes + (is_second_here ? 2 * kLineBytes : 0);
    }
  };

  LAMINA_NOINLINE static void expand_indices(const uint8_t* __restrict from, bool is_second_there,
                                             uint8_t* __restrict to, bool is_second_here) {
    const int right = is_second_there ? 4 : 0, left = is_second_here ? 4 : 0;
    for (int i = 0; i < kLineBytes; ++i) {
      const int index = (from[i] >> right & 15) << left;
      to[i] = static_cast<uint8_t>(is_second_here ? to[i] | index : index);
    }
  }

  LAMINA_NOINLINE static void expand_codes(const uint8_t* __restrict from, int8_t* __restrict to) {
    for (int i = 0; i < kLineBytes; ++i)
      to[i] = static_cast<int8_t>((from[i] & 15) - kSymmetricZeroPoint);
    for (int i = 0; i < kLineBytes; ++i)
      to[kLineBytes + i] = static_cast<int8_t>((from[i] >> 4) - kSymmetricZeroPoint);
  }

  // Expands one half, of which `valid` input features lie before the end of k; the rest becomes 0.
  void expand(const Half& half, int64_t valid, int8_t* kept_span, int column) {
    const uint8_t* const codes =
        half.from + sparse24_rows::kIndexBytes + (half.is_second_there ? kLineBytes : 0);
    int8_t* const values = half.values();
    expand_indices(half.from, half.is_second_there, reinterpret_cast<uint8_t*>(half.to),
                   half.is_second_here);
    expand_codes(codes, values);
    const auto clear_padding = [&](int8_t* bytes) {
      for (int64_t i = 0; i < 2 * kLineBytes; ++i) {
        const int64_t k = i / kLineBytes * sparse24_rows::kStepK + i % 4 / 2 * 4;
        if (k >= valid) bytes[i] = 0;
      }
    };
    if (valid < kHalfK) clear_padding(values);
    for (int step = 0; step < 2; ++step)
      Tile::add_sums(values + step * kLineBytes, shared.codes.sums + column);
    if (!kept_span) return;
    std::copy_n(half.to, sparse24_rows::kIndexBytes, kept_span);
    int8_t* const ones = kept_span + (values - half.to);
    std::fill_n(ones, 2 * kLineBytes, int8_t{1});
    if (valid < kHalfK) clear_padding(ones);
    for (int step = 0; step < 2; ++step)
      Tile::add_sums(ones + step * kLineBytes, shared.kept.sums + column);
  }

  // Expands the whole spans of [k0, k1) that lie in whole spans of the packed weight. Returns where they end.
  int64_t expand_whole_spans(const uint8_t* w, int tile, int64_t k0, int64_t k1) {
    constexpr int64_t kSpanK = sparse24_rows::kSpanK;
    if (k0 % kSpanK != 0) return k0;
    const bool has_zeros = p.w_zero_point.is_given();
    const int64_t spans = (k1 - k0) / kSpanK, column = tile * int8_tile::kTileN;
    int8_t* const to = shared.codes.tiles + tile * kStride;
    const bool needs_sums = Tile::kOffset != 0 || has_zeros || p.a_zero_point.is_given();
    Tile::expand_spans(w + k0 / kSpanK * kCodeSpanBytes, spans, to,
                       needs_sums ? shared.codes.sums + column : nullptr);
    if (has_zeros) {
      for (int64_t i = 0; i < spans; ++i) {
        int8_t* const kept_span = shared.kept.tiles + tile * kStride + i * kSpanBytes;
        std::copy_n(to + i * kSpanBytes, sparse24_rows::kIndexBytes, kept_span);
        std::fill_n(kept_span + sparse24_rows::kIndexBytes, 4 * kLineBytes, int8_t{1});
      }
      for (int j = 0; j < int8_tile::kTileN; ++j)
        shared.kept.sums[column + j] += static_cast<int32_t>(spans * kSpanK / 2);
    }
    return k0 + spans * kSpanK;
  }

  // Expands input features [k0, k1) of a group to tiles in L1. Past k1 the last tile is 0.
  void expand_block(const uint8_t* w, int64_t w_stride, int tiles_n, int64_t k0, int64_t k1) {
    const bool has_zeros = p.w_zero_point.is_given();
    for (int t = 0; t < tiles_n; ++t) {
      const uint8_t* const tile = w + t * w_stride;
      const int64_t end = k0 + round_up(k1 - k0, int8_tile::kTileK);
      for (int64_t k = expand_whole_spans(tile, t, k0, k1); k < end; k += kHalfK) {
        const int64_t span = t * kStride + (k - k0) / sparse24_rows::kSpanK * kSpanBytes;
        const bool is_second_here = (k - k0) / kHalfK % 2 == 1;
        if (k >= k1) {
          clear_half(span, is_second_here);
          continue;
        }
        const Half half{tile + k / sparse24_rows::kSpanK * kCodeSpanBytes, k / kHalfK % 2 == 1,
                        shared.codes.tiles + span, is_second_here};
        expand(half, k1 - k, has_zeros ? shared.kept.tiles + span : nullptr, t * int8_tile::kTileN);
      }
    }
  }

  // Zero weights with any valid index.
  void clear_half(int64_t span, bool is_second) {
    for (Bytes* bytes : {&shared.codes, &shared.kept}) {
      int8_t* const to = bytes->tiles + span;
      if (!is_second) std::fill_n(to, sparse24_rows::kIndexBytes, int8_t{0});
      std::fill_n(to + sparse24_rows::kIndexBytes + (is_second ? 2 * kLineBytes : 0),
                  2 * kLineBytes, int8_t{0});
    }
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

  // add_group() without zero points, by a Tile that scales. A single panel of rows reads the codes themselves, where the
  // group's part of a block is whole tiles.
  void add_scaled_group(int64_t g, int64_t m0, int64_t n0, int count, int64_t rows,
                        const uint8_t* w, int64_t w_stride) {
    const auto tiles_n = static_cast<int>(int8_tile::tiles_n(count));
    const float* scale = shared.scale;
    if (p.w_scale.kind == GroupTensor::Kind::kF32 && p.w_scale.stride == 1 && count == kTileN) {
      scale = static_cast<const float*>(p.w_scale.data) + g * p.w_scale.group_stride + n0;
    } else {
      load_columns(p.w_scale, g, n0, count, 1.0f, shared.scale);
    }
    for (int64_t k0 = g * p.problem.group, tile = 0; k0 < group_end(g);
         k0 += kBlockK, tile += kBlockTilesK) {
      const int64_t k1 = std::min(k0 + kBlockK, group_end(g));
      const bool are_codes =
          rows <= kTileM && k0 % sparse24_rows::kSpanK == 0 && (k1 - k0) % Tile::kCodesK == 0;
      // The sums of a group in one block need no place of their own for each panel, which would leave L1.
      const bool is_whole = group_end(g) - g * p.problem.group <= kBlockK;
      if (!are_codes) expand_block(w, w_stride, tiles_n, k0, k1);
      for_panels(rows, [&](const Panel& panel) {
        int32_t zero[kTileM];
        for (int r = 0; r < panel.rows; ++r)
          zero[r] = Tile::kOffset + this->zero_point(m0 + panel.row + r);
        const int64_t at = panel.row * kTileN;
        Tile::add_group({panel.rows, packed_at(panel, g, tile),
                         are_codes ? w + k0 / sparse24_rows::kSpanK * kCodeSpanBytes
                                   : reinterpret_cast<const uint8_t*>(shared.codes.tiles),
                         are_codes, are_codes ? w_stride : kStride, tiles_n,
                         ceil_div(k1 - k0, int64_t{sparse24_rows::kSpanK}),
                         acc + (is_whole ? 0 : at), tile > 0, k1 == group_end(g), shared.codes.sums, p.a_zero_point.is_given(), zero,
                         scale, k_chunk + at});
      });
    }
  }

  // k_chunk += the scaled sums of group g.
  void add_group(int64_t g, int64_t m0, int64_t n0, int count, int64_t rows, const uint8_t* w,
                 int64_t w_stride) {
    const auto tiles_n = static_cast<int>(int8_tile::tiles_n(count));
    const bool has_zeros = p.w_zero_point.is_given();
    const int64_t ahead = g + std::max(kScalesAheadK / p.problem.group, int64_t{1});
    prefetch_columns(p.w_scale, ahead, n0, count);
    if (has_zeros) prefetch_columns(p.w_zero_point, ahead, n0, count);
    std::fill_n(shared.codes.sums, kTileN, 0);
    if constexpr (Tile::kScales)
      if (!has_zeros) return add_scaled_group(g, m0, n0, count, rows, w, w_stride);
    std::fill_n(shared.kept.sums, kTileN, 0);
    for (int64_t k0 = g * p.problem.group, tile = 0; k0 < group_end(g);
         k0 += kBlockK, tile += kBlockTilesK) {
      const int64_t k1 = std::min(k0 + kBlockK, group_end(g)),
                    tiles_k = int8_tile::tiles_k(k1 - k0);
      expand_block(w, w_stride, tiles_n, k0, k1);
      multiply(shared.codes, g, tile, tiles_k, tiles_n, rows, acc);
      if (has_zeros) multiply(shared.kept, g, tile, tiles_k, tiles_n, rows, kept);
    }
    load_columns(p.w_scale, g, n0, count, 1.0f, shared.scale);
    if (has_zeros) load_columns(p.w_zero_point, g, n0, count, -1.0f, shared.minus_zero);
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t zero = Tile::kOffset + this->zero_point(m0 + r);
      const int64_t at = r * kTileN;
      if (has_zeros) {
        add_zero_points(acc + at, kept + at, zero, shared.codes.sums, shared.kept.sums,
                        shared.minus_zero, shared.scale, count, k_chunk + at);
      } else {
        add_products(acc + at, zero, shared.codes.sums, 1.0f, shared.scale, count, k_chunk + at);
      }
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
      for (int64_t g = first; g < std::min(groups, first + each); ++g)
        add_group(g, m0, n0, count, rows, w, w_stride);
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
CpuKernel make_int4_kernel(const char* name, Isa isa, int64_t min_m, int macs_per_cycle) {
  using Nest = Int4Nest<Tile>;
  CpuKernel kernel = cpu_kernel<Nest, Tile, Int4Int8Params>(name, isa, min_m, macs_per_cycle);
  kernel.group_step = kInt4GroupStep;
  kernel.scratch_bytes = sizeof(typename Nest::Shared);
  return kernel;
}

}  // namespace
}  // namespace lamina::matmul_sparse24
