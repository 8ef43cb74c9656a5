// The loop nest of gemm_int4_int8 on a CPU, once. An ISA's file defines a Tile and instantiates the nest:
//
//   struct Tile {
//     struct Session             state of the core while multiply() runs, for one Problem, RAII
//     kTileM, kRowStep           most rows of one multiply(); the row count is rounded up to kRowStep
//     kTileN                     most columns that share one epilogue, a multiple of 16
//     kScales                    whether multiply() can scale sums; else it leaves them unscaled
//     kUnpacks                   whether multiply() can read packed codes
//     kTakesSigned               whether multiply() expects symmetric codes minus 8 where it scales
//     kGroupStep                 where k has several groups, their size must be a multiple of this
//     tiles_at_once(rows)        tiles of 16 columns in one multiply(), for this number of rows
//     packed_rows(rows)          rows that pack() makes of this number of rows
//     pack(a, a_stride, rows, k, packed)   stores packed_rows(rows) x 64 bytes for each 64 k, with zeros past k
//     packed_at(rows, k)         offset of input feature k, the first of a step, in the bytes of a panel
//     multiply<kCodes>(Step)
//   };
//
// The nest works on one block of k at a time: it expands the block's codes to bytes in L1, in the order of int8_tile,
// then all packed rows pass, group by group. A single panel of rows reads the packed codes itself. Everything has
// internal linkage: see gemm/cpu/int8_nest.h.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "base/int_math.h"
#include "base/unroll.h"
#include "gemm/cpu/plan.h"
#include "gemm/cpu/store_strip.h"
#include "layout/int4.h"
#include "layout/int8_tile.h"
#include "ops/gemm_int4_int8/cpu/step.h"
#include "quant/group_columns.h"

namespace lamina::gemm_int4_int8 {
namespace {

// 64 columns of weights are 16 KiB, half of the smallest L1d.
inline constexpr int64_t kBlockTilesK = 4;
inline constexpr int64_t kBlockK = kBlockTilesK * int4::kTileK;
inline constexpr int64_t kBlockStride = kBlockTilesK * int8_tile::kTileBytes;

template <class Tile>
using StripOf = StoreStrip<Params, Tile::kTileN, int4::kTileN>;

template <class Tile>
struct Nest : StripOf<Tile> {
  using StripOf<Tile>::p;
  static constexpr int kTileM = Tile::kTileM, kTileN = Tile::kTileN;
  static constexpr int kPieces = static_cast<int>(kBlockK) / kInt4GroupStep;

  // Scratch that all panels share.
  struct Shared {
    alignas(64) int8_t codes[kTileN / int4::kTileN * kBlockStride];
    alignas(64) float scale[kPieces][kTileN], zero_point[kPieces][kTileN];
    alignas(64) int32_t q_sum[kTileN];  // sums of the codes of the current group, so far
  };

  const Block& block;
  Shared& shared;
  int8_t* const packed;
  int32_t* const a_sums;  // [panel][group][kTileM] sums of activations minus their zero point
  int32_t* const acc;     // [row][kTileN], and so are k_chunk and total
  float* const k_chunk;
  float* const total;

  static int64_t packed_panel_bytes(const Problem& p) {
    return int4::tiles_k(p.k) * int4::kTileK * kTileM;
  }
  static int64_t sums_of_panel(const Problem& p) { return round_up(p.groups() * kTileM, 16); }

  static int64_t panel_bytes(const Problem& p) {
    return packed_panel_bytes(p) + sums_of_panel(p) * 4 + int64_t{kTileM} * kTileN * 3 * 4;
  }

  Nest(const Params& params, const Block& where, void* scratch)
      : StripOf<Tile>{params},
        block(where),
        shared(*static_cast<Shared*>(scratch)),
        packed(static_cast<int8_t*>(scratch) + sizeof(Shared)),
        a_sums(reinterpret_cast<int32_t*>(packed +
                                          panels_of(where) * packed_panel_bytes(params.problem))),
        acc(a_sums + panels_of(where) * sums_of_panel(params.problem)),
        k_chunk(reinterpret_cast<float*>(acc + where.panel_m * kTileN)),
        total(k_chunk + where.panel_m * kTileN) {}

  static int64_t panels_of(const Block& block) { return block.panel_m / kTileM; }

  struct Panel {
    int64_t row;
    int rows;
    int8_t* packed;
    int32_t* a_sums;
  };

  // Panels of equal height: 16 rows are 4 x 4, not 6 + 6 + 4.
  template <class Body>
  void for_panels(int64_t rows, const Body& body) const {
    const int64_t each =
        round_up(ceil_div(rows, ceil_div(rows, int64_t{kTileM})), int64_t{Tile::kRowStep});
    for (int64_t i = 0, row = 0; row < rows; ++i, row += each)
      body(Panel{row, static_cast<int>(std::min(each, rows - row)),
                 packed + i * packed_panel_bytes(p.problem),
                 a_sums + i * sums_of_panel(p.problem)});
  }

  void pack(int64_t m0, const Panel& panel) const {
    const int64_t k = p.problem.k;
    const int8_t* const a = p.a + m0 * p.a_stride;
    if (!p.perm.is_given()) return pack_features(m0, panel, a, p.a_stride, 0, k);
    alignas(64) int8_t gathered[kTileM * kBlockK];
    for (int64_t k0 = 0; k0 < k; k0 += kBlockK) {
      const int64_t count = std::min(kBlockK, k - k0);
      for (int r = 0; r < panel.rows; ++r)
        gather(a + r * p.a_stride, p.perm.data + k0, count,
               static_cast<int8_t>(this->zero_point(m0 + r)), gathered + r * kBlockK);
      pack_features(m0, panel, gathered, kBlockK, k0, k0 + count);
    }
  }

  // Packs input features [k0, k1), which start at `a`, and adds them to the sums of their groups. k0: a multiple of
  // kTileK.
  void pack_features(int64_t m0, const Panel& panel, const int8_t* a, int64_t stride, int64_t k0,
                     int64_t k1) const {
    const int64_t group = p.problem.group;
    Tile::pack(a, stride, panel.rows, k1 - k0, panel.packed + k0 * Tile::packed_rows(panel.rows));
    for (int r = 0; r < panel.rows; ++r) {
      const int32_t zero = this->zero_point(m0 + r);
      const int8_t* const row = a + r * stride;
      for (int64_t first = k0; first < k1;) {
        const int64_t g = first / group, count = std::min((g + 1) * group, k1) - first;
        int32_t& sum = panel.a_sums[g * kTileM + r];
        if (first == g * group) sum = 0;
        sum += sum_of(row + first - k0, count) - zero * static_cast<int32_t>(count);
        first += count;
      }
    }
  }

  // A packed place without a feature gets the row's zero point, so that it counts as 0 in products and in sums.
  LAMINA_NOINLINE static void gather(const int8_t* __restrict row, const int32_t* __restrict perm,
                                     int64_t count, int8_t zero, int8_t* __restrict to) {
    for (int64_t i = 0; i < count; ++i) to[i] = perm[i] < 0 ? zero : row[perm[i]];
  }

  LAMINA_NOINLINE static int32_t sum_of(const int8_t* values, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i];
    return sum;
  }

  // Stores the codes of a tile minus `zero`, one byte each, and prefetches the codes `ahead` bytes later.
  LAMINA_NOINLINE static void expand(const uint8_t* __restrict from, int64_t ahead, int8_t zero,
                                     int8_t* __restrict to) {
    constexpr int kLine = 64;
    for (int line = 0; line < int4::kTileBytes / kLine; ++line, from += kLine, to += 2 * kLine) {
      __builtin_prefetch(from + ahead, 0, 2);
      for (int i = 0; i < kLine; ++i) to[i] = static_cast<int8_t>((from[i] & 15) - zero);
      for (int i = 0; i < kLine; ++i) to[kLine + i] = static_cast<int8_t>((from[i] >> 4) - zero);
    }
  }

  // Adds the scaled sums of a group that ends, columns [0, count) of all rows, to the k chunk.
  void add_group(const Piece& piece, int64_t m0, int64_t rows, int count) const {
    for_panels(rows, [&](const Panel& panel) {
      for (int r = 0; r < panel.rows; ++r) {
        const int64_t row = panel.row + r, at = row * kTileN;
        const int32_t a_zero = this->zero_point(m0 + row);
        const int32_t a_sum = panel.a_sums[piece.group * kTileM + r];
        if (p.w_zero_point.is_given()) {
          add_zero_points(acc + at, a_zero, shared.q_sum, a_sum, piece.zero_point, piece.scale,
                          count, k_chunk + at);
        } else {
          add_symmetric(acc + at, a_zero, shared.q_sum, a_sum, piece.scale, count, k_chunk + at);
        }
      }
    });
  }

  // Adds the codes of a piece to the code sums of its group, column by column.
  void add_codes(const Piece& piece, int fours_before, int tiles_n) {
    if (piece.begins) std::fill_n(shared.q_sum, kTileN, 0);
    for (int t = 0; t < tiles_n; ++t) {
      const int8_t* at =
          shared.codes + t * kBlockStride + fours_before * (int4::kTileN * int8_tile::kGroupK);
      for (int f = 0; f < piece.fours; ++f)
        for (int j = 0; j < int4::kTileN; ++j)
          for (int e = 0; e < int8_tile::kGroupK; ++e) shared.q_sum[t * int4::kTileN + j] += *at++;
    }
  }

  // The values of a group: where they are if that is possible, else in `copy`.
  static const float* columns(const GroupTensor& from, int64_t group, int64_t n0, int count,
                              float (&copy)[kTileN]) {
    if (from.kind == GroupTensor::Kind::kF32 && from.stride == 1 && count == kTileN)
      return static_cast<const float*>(from.data) + group * from.group_stride + n0;
    load_columns(from, group, n0, count, 1.0f, copy);
    return copy;
  }

  // Finds the pieces of groups in [k0, k1), and the scales and zero points of the groups that end there.
  int find_pieces(int64_t n0, int count, int64_t k0, int64_t k1,
                  std::array<Piece, kPieces>& pieces) {
    const int64_t k = p.problem.k, group = p.problem.group;
    const int64_t ahead = std::max((k1 - k0) / group, int64_t{1});  // the groups of the next block
    size_t found = 0;
    for (int64_t at = k0, g = k0 / group; at < k1; ++found, ++g) {
      Piece& piece = pieces[found];
      piece.group = g;
      const int64_t end = std::min((g + 1) * group, k), stop = std::min(end, k1);
      piece.fours = static_cast<int>(ceil_div(stop - at, int8_tile::kGroupK));
      piece.begins = at == piece.group * group;
      piece.ends = stop == end;
      piece.scale = piece.zero_point = shared.scale[found];
      at = stop;
      if (!piece.ends) continue;
      prefetch_columns(p.w_scale, g + ahead, p.problem.groups(), n0, count);
      if (p.w_zero_point.is_given())
        prefetch_columns(p.w_zero_point, g + ahead, p.problem.groups(), n0, count);
      piece.scale = columns(p.w_scale, g, n0, count, shared.scale[found]);
      if (p.w_zero_point.is_given())
        piece.zero_point = columns(p.w_zero_point, g, n0, count, shared.zero_point[found]);
    }
    return static_cast<int>(found);
  }

  // A block of k of a strip.
  struct Where {
    int64_t m0, n0, k0, k1, rows;
    int count;         // columns
    const uint8_t* w;  // the block's first tile
    int64_t w_stride;

    int tiles_n() const { return static_cast<int>(int4::tiles_n(count)); }
    const uint8_t* stream() const { return w - k0 / int4::kTileK * int4::kTileBytes; }
  };

  // shared.codes = the codes of the block. Prefetches the next block of this strip, else the first block of the next
  // strip, which belongs to this task or most likely to the next task.
  void expand_block(const Where& at, int8_t zero) {
    constexpr int64_t kBytesOfK = int4::kTileBytes / int4::kTileK;
    const int64_t ahead = at.k1 < p.problem.k
                              ? (at.k1 - at.k0) * kBytesOfK
                              : kTileN / int4::kTileN * at.w_stride - at.k0 * kBytesOfK;
    for (int t = 0; t < at.tiles_n(); ++t)
      for (int64_t tile = 0; tile < int4::tiles_k(at.k1 - at.k0); ++tile)
        expand(at.w + t * at.w_stride + tile * int4::kTileBytes, ahead, zero,
               shared.codes + t * kBlockStride + tile * int8_tile::kTileBytes);
  }

  template <Codes kCodes>
  void multiply(const Where& at, Scaling scaling, const Piece* pieces, int count, int fours) {
    constexpr bool kIsPacked = kCodes == Codes::kPacked;
    constexpr int kFourBytes = int4::kTileN * int8_tile::kGroupK / (kIsPacked ? 2 : 1);
    const int8_t* const w = kIsPacked ? reinterpret_cast<const int8_t*>(at.w) : shared.codes;
    const int64_t stride = kIsPacked ? at.w_stride : kBlockStride;
    const int at_once = Tile::tiles_at_once(at.rows);
    for (int tile = 0; tile < at.tiles_n(); tile += at_once) {
      const StreamAhead ahead(at.stream() + tile * at.w_stride, at.w_stride, kTileN / int4::kTileN);
      for_panels(at.rows, [&](const Panel& panel) {
        const int64_t first = panel.row * kTileN + tile * int4::kTileN;
        Tile::template multiply<kCodes>(
            Step{panel.rows,
                 panel.packed + Tile::packed_at(panel.rows, at.k0 + fours * int8_tile::kGroupK),
                 fours % int8_tile::kGroups, w + tile * stride + fours * kFourBytes, stride, ahead,
                 std::min(at_once, at.tiles_n() - tile), pieces, count, panel.a_sums, acc + first,
                 k_chunk + first, tile * int4::kTileN, scaling, p.problem});
      });
    }
  }

  // k_chunk += the groups that end in the block.
  void add_block(const Where& at) {
    std::array<Piece, kPieces> pieces;
    const int found = find_pieces(at.n0, at.count, at.k0, at.k1, pieces);
    const bool has_a_zero = p.a_zero_point.is_given();
    if (Tile::kScales && !has_a_zero) {
      const Scaling scaling =
          p.w_zero_point.is_given() ? Scaling::kZeroPoints : Scaling::kSymmetric;
      if constexpr (Tile::kUnpacks)
        if (at.rows <= kTileM && at.tiles_n() % Tile::tiles_at_once(at.rows) == 0)
          return multiply<Codes::kPacked>(at, scaling, pieces.data(), found, 0);
      const bool takes_zero = Tile::kTakesSigned && scaling == Scaling::kSymmetric;
      expand_block(at, takes_zero ? kSymmetricZeroPoint : 0);
      return multiply<Codes::kBytes>(at, scaling, pieces.data(), found, 0);
    }
    expand_block(at, 0);
    if (!has_a_zero) std::fill_n(shared.q_sum, kTileN, 0);
    for (int i = 0, fours = 0; i < found; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      multiply<Codes::kBytes>(at, Scaling::kNone, &piece, 1, fours);
      if (has_a_zero) add_codes(piece, fours, at.tiles_n());
      if (piece.ends) add_group(piece, at.m0, at.rows, at.count);
      fours += piece.fours;
    }
  }

  // total[rows][kTileN] = the scaled sums of columns [n0, n0 + count).
  void multiply_strip(int64_t m0, int64_t n0, int count, int64_t rows) {
    const int64_t k = p.problem.k, each = chunk_k(p.problem.group);
    const int64_t w_stride = int4::tiles_k(k) * int4::kTileBytes;
    const uint8_t* const w = p.w + n0 / int4::kTileN * w_stride;
    std::fill_n(total, rows * kTileN, empty_sum(p.problem.groups()));
    for (int64_t first = 0; first < k; first += each) {
      const int64_t last = std::min(k, first + each);
      std::fill_n(k_chunk, rows * kTileN, kNoSum);
      for (int64_t k0 = first; k0 < last; k0 += kBlockK)
        add_block({m0, n0, k0, std::min(last, k0 + kBlockK), rows, count,
                   w + k0 / int4::kTileK * int4::kTileBytes, w_stride});
      add_row(k_chunk, rows * kTileN, total);
    }
    for (int64_t r = 0; r < rows; ++r) scale_row(p.a_scale[m0 + r], count, total + r * kTileN);
  }

  LAMINA_NOINLINE static void scale_row(float scale, int count, float* y) {
    for (int j = 0; j < count; ++j) y[j] *= scale;
  }

  void run() {
    [[maybe_unused]] const typename Tile::Session session(p.problem);
    for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += block.panel_m) {
      const int64_t rows = std::min(block.panel_m, block.m_end - m0);
      if (!block.is_packed)
        for_panels(rows, [&](const Panel& panel) { pack(m0 + panel.row, panel); });
      for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kTileN) {
        const int count = static_cast<int>(std::min<int64_t>(kTileN, block.n_end - n0));
        multiply_strip(m0, n0, count, rows);
        typename StripOf<Tile>::Columns columns;
        this->load_bias(n0, count, columns);
        this->store(total, m0, rows, n0, count, columns);
      }
    }
  }
};

template <class Tile>
constexpr CpuKernel make_kernel(const char* name, Isa isa, int macs_per_cycle) {
  CpuKernel kernel = cpu_kernel<Nest<Tile>, Tile, Params>(name, isa, macs_per_cycle);
  kernel.group_step = Tile::kGroupStep;
  kernel.scratch_bytes = sizeof(typename Nest<Tile>::Shared);
  kernel.expand_rows = 3;  // two loads, two logic instructions, two stores for two vectors
  return kernel;
}

}  // namespace
}  // namespace lamina::gemm_int4_int8
