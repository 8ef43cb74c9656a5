// gemm_int4 / avx512_bf16: for bf16 activations and integer zero points. vdpbf16ps multiplies pairs of bf16 and adds them in
// f32; the weights without their scales, q - zero point, are exact in bf16.
//
// Ports    32 MACs an instruction, one instruction a cycle on Zen 4. A line of 8 k x 16 columns takes 4 products a row. Its
//          weights take 3 shifts and 4 vpermw, and with zero points 2 logic instructions and 2 additions. Zen 4 permutes
//          on a port that does not multiply. So every panel of rows unpacks the codes again, into registers, and
//          weights in L1, which all panels would share, are no faster.
// Tile     8 rows x 32 columns, or 4 rows x 64 columns: 16 sums, which hide the 6 cycles from a product to the next one of
//          the same sum. 12 rows x 32 columns are no faster, because the products limit both, and with zero points they
//          spill (2026-12, Zen 4, 1024 x 4096).
// Weights  A dword of a line has the codes of 8 k of one column; shifted by 0, 8, 4 and 12 bits, its halves begin with the
//          codes of k (0, 2), (1, 3), (4, 6) and (5, 7). The packed activations are in the order of these pairs:
//          [line][row][4 pairs], with zeros past k.
#include <algorithm>
#include <array>
#include <utility>

#include "base/avx512.h"
#include "gemm/cpu/plan.h"
#include "gemm/cpu/prefetch.h"
#include "gemm/cpu/store_strip.h"
#include "layout/int4.h"
#include "ops/gemm_int4/gemm_int4.h"
#include "quant/group_columns.h"

namespace lamina::gemm_int4 {
namespace {

inline constexpr int kLineBytes = 64, kLineK = 8, kPairs = kLineK / 2;
inline constexpr int64_t kBlockK = 256;  // the input features of a block, unless a piece has more
inline constexpr int kPieces = static_cast<int>(kBlockK) / kInt4GroupStep;

// How weights are made of codes: all zero points are 8; all are at most 16, which a table of 32 weights covers; or any.
enum class Zeros { kEight, kTable, kAny };
inline constexpr int kMostInTable = 16;

// The part of a group that lies in a k chunk.
struct Piece {
  int64_t lines;
  const float* scale;
  const uint32_t* zero;  // kTable: kMostInTable - zero point in each byte; kAny: the zero point
};

// The arguments of multiply(), which for each piece in turn computes y += (a * weights of the piece) * scale.
struct Step {
  int rows;
  const uint32_t* a;  // packed, from the first line on
  const uint8_t* w;   // [tile of 16 columns: w_stride bytes]
  int64_t w_stride;
  StreamAhead ahead;
  const Piece* pieces;
  int count;
  int column;  // the first column, an index into the scales of the pieces
  float* y;    // [rows][kTileN]
};

// The integers kFirst + i % kCount in bf16, which vpermw looks up by the low five bits of a half dword.
struct Table {
  alignas(64) BF16 weights[32];
};
template <int kFirst, int kCount>
inline constexpr Table kTable = [] {
  Table table{};
  for (int i = 0; i < 32; ++i)
    table.weights[i] = from_f32<BF16>(static_cast<float>(kFirst + i % kCount));
  return table;
}();

struct Tile {
  static constexpr int kTileM = 8, kTileN = 64;
  static constexpr int kWideRows = 4;  // most rows that take all columns at a time

  // The codes of two pairs of a line, plus what the table needs: `half` is 0 for the pairs 0 and 1, 1 for 2 and 3.
  template <Zeros kZeros>
  LAMINA_INLINE static __m512i codes(__m512i line, auto half, const uint32_t* zero) {
    const __m512i shifted = half == 0 ? line : _mm512_srli_epi32(line, 4);
    if constexpr (kZeros == Zeros::kEight) return shifted;
    const __m512i alone = _mm512_and_si512(shifted, _mm512_set1_epi8(15));
    return kZeros == Zeros::kAny ? alone : _mm512_add_epi32(alone, _mm512_loadu_si512(zero));
  }

  // The weights of 16 columns for one of these two pairs.
  template <Zeros kZeros>
  LAMINA_INLINE static __m512i weights(__m512i codes, auto pair, __m512i table,
                                       const uint32_t* zero) {
    const __m512i here = pair == 0 ? codes : _mm512_srli_epi32(codes, 8);
    if constexpr (kZeros != Zeros::kAny) return _mm512_permutexvar_epi16(here, table);
    const auto weight = [&](__m512i code) LAMINA_INLINE {
      const __m512i alone = _mm512_and_si512(code, _mm512_set1_epi32(15));
      return reinterpret_cast<__m512i>(to_floats(subtract(alone, _mm512_loadu_si512(zero))));
    };
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return _mm512_or_si512(_mm512_srli_epi32(weight(here), 16),
                           _mm512_and_si512(weight(_mm512_srli_epi32(here, 16)), high));
  }

  template <Zeros kZeros, int kRows, int kTiles>
  static void multiply_fixed(const Step& step) {
    const uint32_t* a = step.a;
    const uint8_t* w = step.w;
    const Table& integers =
        kZeros == Zeros::kEight ? kTable<-kSymmetricZeroPoint, 16> : kTable<-kMostInTable, 32>;
    const __m512i table = _mm512_load_si512(integers.weights);
    for (int i = 0; i < step.count; ++i) {
      const Piece& piece = step.pieces[i];
      const float* const scale = piece.scale + step.column;
      const uint32_t* const zero = piece.zero + step.column;
      __m512 sum[kRows][kTiles];
      unroll<kRows>([&](auto r) LAMINA_INLINE {
        unroll<kTiles>([&](auto t) LAMINA_INLINE { sum[r][t] = _mm512_set1_ps(kNoSum); });
      });
      for (int64_t left = piece.lines; left > 0; --left, w += kLineBytes, a += kRows * kPairs) {
        const int64_t ahead = step.ahead(w);
        unroll<kTiles>(
            [&](auto t) LAMINA_INLINE { __builtin_prefetch(w + t * step.w_stride + ahead, 0, 2); });
        unroll<2>([&](auto half) LAMINA_INLINE {
          __m512i both[kTiles];
          unroll<kTiles>([&](auto t) LAMINA_INLINE {
            both[t] = codes<kZeros>(_mm512_loadu_si512(w + t * step.w_stride), half,
                                    zero + t * int4::kTileN);
          });
          unroll<2>([&](auto pair) LAMINA_INLINE {
            __m512i weight[kTiles];
            unroll<kTiles>([&](auto t) LAMINA_INLINE {
              weight[t] = weights<kZeros>(both[t], pair, table, zero + t * int4::kTileN);
            });
            unroll<kRows>([&](auto r) LAMINA_INLINE {
              const uint32_t two = a[r * kPairs + half * 2 + pair];
              const __m512i row = _mm512_set1_epi32(static_cast<int>(two));
              unroll<kTiles>(
                  [&](auto t) LAMINA_INLINE { sum[r][t] = dot_bf16(sum[r][t], weight[t], row); });
            });
          });
        });
      }
      unroll<kTiles>([&](auto t) LAMINA_INLINE {
        const __m512 of_tile = _mm512_loadu_ps(scale + t * int4::kTileN);
        unroll<kRows>([&](auto r) LAMINA_INLINE {
          float* const y = step.y + r * kTileN + t * int4::kTileN;
          _mm512_storeu_ps(y, _mm512_fmadd_ps(sum[r][t], of_tile, _mm512_loadu_ps(y)));
        });
      });
    }
  }

  // For 1 to kMostRows rows.
  template <Zeros kZeros, int kTiles, int kMostRows>
  static void multiply_tiles(const Step& step) {
    const auto multiply = []<size_t... kBefore>(std::index_sequence<kBefore...>) {
      return std::array{multiply_fixed<kZeros, static_cast<int>(kBefore) + 1, kTiles>...};
    }(std::make_index_sequence<kMostRows>());
    multiply[static_cast<size_t>(step.rows - 1)](step);
  }

  template <Zeros kZeros>
  static void multiply(Step step, int tiles_n) {
    constexpr int kAll = kTileN / int4::kTileN;
    if constexpr (kZeros != Zeros::kAny)
      if (step.rows <= kWideRows && tiles_n == kAll)
        return multiply_tiles<kZeros, kAll, kWideRows>(step);
    for (int t = 0; t < tiles_n; t += 2) {
      // An odd last tile is multiplied twice; its second result is in columns that nobody stores.
      Step two = step;
      if (t + 1 == tiles_n) two.w_stride = 0;
      multiply_tiles<kZeros, 2, kTileM>(two);
      step.w += 2 * step.w_stride;
      step.column += 2 * int4::kTileN;
      step.y += 2 * int4::kTileN;
    }
  }
};

using Strip = StoreStrip<Params, Tile::kTileN, int4::kTileN>;

struct Nest : Strip {
  static constexpr int kTileM = Tile::kTileM, kTileN = Tile::kTileN;

  // Scratch that all panels share.
  struct Shared {
    alignas(64) float scale[kPieces][kTileN];
    alignas(64) uint32_t zero[kPieces][kTileN];
  };

  // A few pieces: the input features [begin, end).
  struct Pieces {
    std::array<Piece, kPieces> each;
    int count = 0;
    int64_t begin, end;
    Zeros zeros = Zeros::kEight;
  };

  const Block& block;
  Shared& shared;
  uint32_t* const packed;
  float* const k_chunk;  // [row][kTileN], and so is total
  float* const total;

  static int64_t pairs_of(const Problem& p) { return ceil_div(p.k, int64_t{kLineK}) * kPairs; }
  static int64_t panel_bytes(const Problem& p) {
    return (pairs_of(p) + 2 * kTileN) * kTileM * int64_t{sizeof(uint32_t)};
  }

  Nest(const Params& params, const Block& where, void* scratch)
      : Strip{params},
        block(where),
        shared(*static_cast<Shared*>(scratch)),
        packed(reinterpret_cast<uint32_t*>(static_cast<Shared*>(scratch) + 1)),
        k_chunk(reinterpret_cast<float*>(packed + where.panel_m * pairs_of(params.problem))),
        total(k_chunk + where.panel_m * kTileN) {}

  // Calls body(first row, rows) for panels of equal height: 9 rows are 5 + 4, not 8 + 1.
  template <class Body>
  static void for_panels(int64_t rows, const Body& body) {
    const int64_t each = ceil_div(rows, ceil_div(rows, int64_t{kTileM}));
    for (int64_t row = 0; row < rows; row += each)
      body(row, static_cast<int>(std::min(each, rows - row)));
  }

  uint32_t* panel(int64_t row) const { return packed + row * pairs_of(p.problem); }

  static void pack_line(const BF16* a, uint32_t* to) {
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m128i line = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(line, order));
  }

  void pack_row(const BF16* a, int64_t to_stride, uint32_t* to) const {
    const int64_t k = p.problem.k;
    for (int64_t k0 = 0; k0 < k; k0 += kLineK, to += to_stride) {
      if (!p.perm.is_given() && k - k0 >= kLineK) {
        pack_line(a + k0, to);
        continue;
      }
      BF16 line[kLineK] = {};
      for (int64_t i = 0; i < std::min(k - k0, int64_t{kLineK}); ++i) {
        const int64_t feature = p.perm.is_given() ? p.perm.data[k0 + i] : k0 + i;
        if (feature >= 0) line[i] = a[feature];
      }
      pack_line(line, to);
    }
  }

  void pack(int64_t m0, int64_t rows) const {
    const BF16* const a = static_cast<const BF16*>(p.a) + m0 * p.a_stride;
    for_panels(rows, [&](int64_t row, int count) {
      for (int r = 0; r < count; ++r)
        pack_row(a + (row + r) * p.a_stride, count * kPairs, panel(row) + r * kPairs);
    });
  }

  LAMINA_NOINLINE static void load_points(const uint8_t* __restrict from, int64_t stride, int count,
                                          bool for_table, uint32_t* __restrict to) {
    for (int j = 0; j < count; ++j) {
      const uint32_t point = from[j * stride];
      to[j] = for_table ? (kMostInTable - point) * 0x01010101u : point;
    }
  }

  LAMINA_NOINLINE static uint8_t most(const uint8_t* points, int64_t stride, int count) {
    uint8_t most = 0;
    for (int j = 0; j < count; ++j) most = std::max(most, points[j * stride]);
    return most;
  }

  // Loads the zero points of groups [first, first + pieces), all in one form.
  Zeros load_zeros(int64_t n0, int count, int64_t first, int pieces) {
    const GroupTensor& from = p.w_zero_point;
    const auto* const points =
        static_cast<const uint8_t*>(from.data) + first * from.group_stride + n0 * from.stride;
    bool for_table = true;
    for (int i = 0; i < pieces; ++i)
      for_table &= most(points + i * from.group_stride, from.stride, count) <= kMostInTable;
    for (int i = 0; i < pieces; ++i)
      load_points(points + i * from.group_stride, from.stride, count, for_table, shared.zero[i]);
    return for_table ? Zeros::kTable : Zeros::kAny;
  }

  // Loads the operands of the pieces from k0 on: whole pieces, of at least kBlockK input features if the k chunk has as many.
  void load_pieces(int64_t n0, int count, int64_t k0, int64_t chunk_end, Pieces& pieces) {
    const int64_t group = p.problem.group, groups = p.problem.groups();
    const int64_t ahead = std::max(kBlockK / group, int64_t{1});
    const bool is_direct = p.w_scale.kind == GroupTensor::Kind::kF32 && p.w_scale.stride == 1;
    pieces.begin = pieces.end = k0;
    for (; pieces.end < chunk_end && pieces.end - k0 < kBlockK; ++pieces.count) {
      const int64_t g = pieces.end / group, stop = std::min((g + 1) * group, chunk_end);
      const auto i = static_cast<size_t>(pieces.count);
      pieces.each[i] = {ceil_div(stop - pieces.end, int64_t{kLineK}), shared.scale[i],
                        shared.zero[i]};
      pieces.end = stop;
      prefetch_columns(p.w_scale, g + ahead, groups, n0, count);
      if (is_direct && count == kTileN) {
        pieces.each[i].scale =
            static_cast<const float*>(p.w_scale.data) + g * p.w_scale.group_stride + n0;
      } else {
        load_columns(p.w_scale, g, n0, count, 1.0f, shared.scale[i]);
      }
      if (p.w_zero_point.is_given()) prefetch_columns(p.w_zero_point, g + ahead, groups, n0, count);
    }
    if (p.w_zero_point.is_given()) pieces.zeros = load_zeros(n0, count, k0 / group, pieces.count);
  }

  // k_chunk += the pieces.
  template <Zeros kZeros>
  void multiply(const uint8_t* w, int tiles_n, int64_t rows, const Pieces& pieces) const {
    const int64_t w_stride = int4::tiles_k(p.problem.k) * int4::kTileBytes;
    const int64_t line = pieces.begin / kLineK;
    for_panels(rows, [&](int64_t row, int count) {
      Tile::multiply<kZeros>(Step{count, panel(row) + line * count * kPairs, w + line * kLineBytes,
                                  w_stride, StreamAhead(w, w_stride, kTileN / int4::kTileN),
                                  pieces.each.data(), pieces.count, 0, k_chunk + row * kTileN},
                             tiles_n);
    });
  }

  // total[rows][kTileN] = the sums of columns [n0, n0 + count).
  void multiply_strip(int64_t n0, int count, int64_t rows) {
    const int64_t k = p.problem.k;
    const int tiles_n = static_cast<int>(int4::tiles_n(count));
    const uint8_t* const w = p.w + n0 / int4::kTileN * int4::tiles_k(k) * int4::kTileBytes;
    std::fill_n(total, rows * kTileN, empty_sum(k));
    for (int64_t k0 = 0; k0 < k; k0 += kChunkK) {
      const int64_t k1 = std::min(k, k0 + kChunkK);
      std::fill_n(k_chunk, rows * kTileN, kNoSum);
      for (int64_t at = k0; at < k1;) {
        Pieces pieces;
        load_pieces(n0, count, at, k1, pieces);
        if (pieces.zeros == Zeros::kEight) multiply<Zeros::kEight>(w, tiles_n, rows, pieces);
        if (pieces.zeros == Zeros::kTable) multiply<Zeros::kTable>(w, tiles_n, rows, pieces);
        if (pieces.zeros == Zeros::kAny) multiply<Zeros::kAny>(w, tiles_n, rows, pieces);
        at = pieces.end;
      }
      add_row(k_chunk, rows * kTileN, total);
    }
  }

  void run() {
    for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += block.panel_m) {
      const int64_t rows = std::min(block.panel_m, block.m_end - m0);
      if (!block.is_packed) pack(m0, rows);
      for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kTileN) {
        const int count = static_cast<int>(std::min<int64_t>(kTileN, block.n_end - n0));
        multiply_strip(n0, count, rows);
        Columns columns;
        load_bias(n0, count, columns);
        store(total, m0, rows, n0, count, columns);
      }
    }
  }
};

constexpr CpuKernel make_kernel() {
  CpuKernel kernel = cpu_kernel<Nest, Tile, Params>("gemm_int4_avx512_bf16", Isa::kAvx512Bf16, 60);
  kernel.needs_bf16 = true;
  kernel.group_step = kInt4GroupStep;
  kernel.scratch_bytes = sizeof(Nest::Shared);
  return kernel;
}

}  // namespace

extern constinit const CpuKernel gemm_int4_avx512_bf16 = make_kernel();

}  // namespace lamina::gemm_int4
