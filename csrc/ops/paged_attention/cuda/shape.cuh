// The sizes of a block of threads of paged_attention, and its shared memory.
#pragma once

#include <bit>
#include <type_traits>

#include "device/device.h"
#include "layout/swizzle.h"
#include "ops/paged_attention/cuda/half.cuh"
#include "ops/paged_attention/cuda/run.h"

namespace lamina::paged_attention {

struct Sm80Config {
  int rows;              // of a tile
  int dim;               // the padded head_dim of keys and values
  int warps_m, warps_n;  // warps along the rows, and along the columns or the elements of values
  int stages;            // of the ring; a stage holds the keys or the values of a block of columns
  int blocks_per_sm;
  Elements cache = Elements::kHalf;
};

// The facts that decide which columns a row sees, in shared memory. Positions count from the first column of the tree, or
// from the end of a request without one.
struct RowInfo {
  int32_t low, high;  // columns low to before high are seen
  int32_t node_low,
      node_high;  // nodes in the mask are seen whose positions are in this range, both included
  int32_t position;
  int32_t token;  // whose row of the mask counts; -1: none
  float slope;    // of ALiBi, in units of log2
};
enum class RowMember { kLow, kHigh, kNodeLow, kNodeHigh, kPosition, kToken, kSlope };
inline constexpr int kRowMembers = sizeof(RowInfo) / 4;

// The piece of work that a block of threads does: a tile, a KV head and a range of visits. It lies in shared memory, because
// the loop over columns leaves no registers for it.
struct alignas(16) Place {
  Tile tile;
  int64_t first, visits;      // of the tile and head: the first in line, and their number
  int64_t begin, end;         // the piece: visits `begin` to `end` - 1 of them
  int32_t head, rows;         // the head of the cache; the rows that exist
  int32_t any_low, any_high;  // some row sees columns any_low to any_high - 1
  int32_t all_low, all_high;  // all rows see columns all_low to all_high - 1
  int32_t prefix;             // columns before the tree
  int32_t shared_end;         // blocks of columns that are the same for all rows (walk.cuh)
  int32_t own_token,
      own_end;        // tokens own_token to own_end - 1 of the call have columns of their own
  int32_t end_block;  // of the piece
  int32_t split_begin, split_end;  // blocks of columns of the split that is computed
  int32_t part;
  int32_t first_part, last_part;  // that share the tile; for the block that merges them
};

// Values of a multiple of 16 bytes, in words of 16.
template <class V>
struct Words {
  dev::U32x4 word[sizeof(V) / 16];
  static_assert(sizeof(V) % 16 == 0);
};
template <class V>
LAMINA_DEVICE V load_words(const V* from) {
  Words<V> words;
#pragma unroll
  for (size_t w = 0; w < sizeof(V) / 16; ++w)
    words.word[w] = dev::load_global(reinterpret_cast<const dev::U32x4*>(from) + w);
  return std::bit_cast<V>(words);
}
template <class V>
LAMINA_DEVICE V load_shared_words(const V* from) {
  Words<V> words;
#pragma unroll
  for (size_t w = 0; w < sizeof(V) / 16; ++w)
    words.word[w] = dev::load_shared(reinterpret_cast<const dev::U32x4*>(from) + w);
  return std::bit_cast<V>(words);
}
template <class V>
LAMINA_DEVICE void store_shared_words(V* to, const V& value) {
  const auto words = std::bit_cast<Words<V>>(value);
#pragma unroll
  for (size_t w = 0; w < sizeof(V) / 16; ++w)
    dev::store_shared(reinterpret_cast<dev::U32x4*>(to) + w, words.word[w]);
}

// The part that all shapes have: the place of a block of threads in shared memory, and its members.
template <class Shape>
struct InSmem {
  LAMINA_DEVICE static std::byte* smem(int at) { return dev::dynamic_smem() + at; }
  LAMINA_DEVICE static Place* place() { return reinterpret_cast<Place*>(smem(Shape::kPlaceAt)); }
  template <class V>
  LAMINA_DEVICE static V at(V Place::* member) {
    return dev::load_shared(&(place()->*member));
  }
  LAMINA_DEVICE static int32_t at(int32_t Tile::* member) {
    return dev::load_shared(&(place()->tile.*member));
  }
  LAMINA_DEVICE static Header* header() {
    return reinterpret_cast<Header*>(smem(Shape::kHeaderAt));
  }
  template <class V>
  LAMINA_DEVICE static V at(V Header::* member) {
    return dev::load_shared(&(header()->*member));
  }
};

template <Sm80Config kConfig, class Query>
struct Sm80Shape : InSmem<Sm80Shape<kConfig, Query>> {
  using InSmem<Sm80Shape>::smem;
  using T = Query;
  static constexpr Elements kElements = kConfig.cache;
  static constexpr bool kIsQuantized = kElements != Elements::kHalf;
  static constexpr bool kRingHasBytes = kIsQuantized;  // they are widened in registers
  static constexpr bool kHasSplits = true;  // whether the kernel can be invariant to the batch
  using W =
      std::conditional_t<kIsQuantized, BF16, T>;  // the type of weights and values in products

  static constexpr int kRows = kConfig.rows, kDim = kConfig.dim;
  static constexpr int kWarpsM = kConfig.warps_m, kWarpsN = kConfig.warps_n;
  static constexpr int kWarps = kWarpsM * kWarpsN, kThreads = kWarps * dev::kWarpLanes;
  static constexpr int kStages = kConfig.stages;
  static constexpr int kTilesM = kRows / (16 * kWarpsM);       // 16 rows each, of a warp
  static constexpr int kTilesColumn = kColumns / 8 / kWarpsN;  // 8 columns each, of a warp
  static constexpr int kTilesElement = kDim / 8 / kWarpsN;     // 8 elements of values, of a warp
  static constexpr int kWarpRows = 16 * kTilesM;
  static_assert(kTilesM >= 1 && kTilesColumn % 2 == 0 && kTilesElement % 2 == 0);
  static_assert(!kIsQuantized || kTilesElement % 4 == 0);
  // Larger tiles load the queries again for each block of columns, because registers are few. Queries that stay would save
  // r32_d128 3 slots of 505.
  static constexpr bool kKeepsQueries = kRows == 16;

  static constexpr int kRowBytes = kDim * (kIsQuantized ? 1 : 2);
  static constexpr int kRowChunks = kRowBytes / swizzle::kChunkBytes;
  static constexpr int kTileBytes = kColumns * kRowBytes;
  static constexpr int kCopyLanes = kRowChunks < 8 ? kRowChunks : 8;

  // Shared memory: the ring; for each stage of keys the scales of its columns, of keys and of values; the positions
  // of columns that are nodes, of all blocks in flight; the queries; the weights, without and with the scales of values,
  // and the maxima that warps along the columns exchange; the columns that each row sees; the place and the header; the addresses of the
  // keys and values that are loaded next; a word for each warp.
  static constexpr int kPositionBlocks = kStages / 2 + 2;
  static constexpr int kScalesAt = kStages * kTileBytes;
  static constexpr int kPositionsAt = kScalesAt + (kIsQuantized ? kStages * 2 * kColumns * 4 : 0);
  static constexpr int kQueriesAt = kPositionsAt + kPositionBlocks * kColumns * 4;
  static constexpr int kWeightsAt = kQueriesAt + kRows * kDim * 2;
  static constexpr int kWeightBytes = kWarpsN > 1 ? kRows * kColumns * 2 : 0;
  static constexpr int kMaximaAt = kWeightsAt + (kIsQuantized ? 2 : 1) * kWeightBytes;
  static constexpr int kRowsAt = kMaximaAt + (kWarpsN > 1 ? kWarpsN * kRows * 4 : 0);
  static constexpr int kPlaceAt = kRowsAt + kRows * static_cast<int>(sizeof(RowInfo));
  static constexpr int kHeaderAt = kPlaceAt + static_cast<int>(sizeof(Place));
  static constexpr int kKeyRowsAt = kHeaderAt + static_cast<int>(sizeof(Header));
  static constexpr int kValueRowsAt = kKeyRowsAt + kColumns * 8;
  static constexpr int kFlagAt = kValueRowsAt + kColumns * 8;
  static constexpr int kSmemBytes = kFlagAt + 4 * kWarps;

  static constexpr bool kAlwaysScales = false;
  // The place of the scales of a block of columns: that of its keys.
  LAMINA_DEVICE static int scales_of(int stage, int) { return stage; }
  // The scales of the keys in a stage or, with `of_values`, of their values.
  LAMINA_DEVICE static float* scales(int stage, bool of_values) {
    return reinterpret_cast<float*>(smem(kScalesAt)) + (stage * 2 + of_values) * kColumns;
  }
  // index: of the block of columns in its walk.
  LAMINA_DEVICE static int32_t* positions(int index) {
    return reinterpret_cast<int32_t*>(smem(kPositionsAt)) + index % kPositionBlocks * kColumns;
  }

  // The byte of a tile in shared memory where a chunk of a row starts.
  LAMINA_DEVICE static int chunk_at(int row, int chunk) {
    return kIsQuantized ? swizzle::byte_row_offset(kRowBytes, row, chunk)
                        : row * kRowBytes + swizzle::row_chunk(row, chunk) * swizzle::kChunkBytes;
  }
  // The same for rows of kCount elements of 16 bits: queries and weights.
  template <int kCount>
  LAMINA_DEVICE static int half_chunk_at(int row, int chunk) {
    return row * kCount * 2 + swizzle::row_chunk(row, chunk) * swizzle::kChunkBytes;
  }

  // From the byte of one of the first eight chunks of one of the first rows of an eight, to that of the chunk `chunks`
  // after it in the row `rows` below. chunks: a multiple of 8; rows: of 4 or, where rows have 4 chunks, of 8.
  LAMINA_DEVICE static int copy_at(int at, int rows, int chunks) {
    return (at ^ rows % 8 * swizzle::kChunkBytes) + rows * kRowBytes +
           chunks * swizzle::kChunkBytes;
  }

  // From the byte of a chunk to that of a chunk of the same row whose number has these bits set in addition. Loops over
  // chunks then need few addresses, as swizzles XOR the low three bits of a chunk.
  LAMINA_DEVICE static int step(int at, int chunks) {
    return (at ^ chunks % 8 * swizzle::kChunkBytes) + chunks / 8 * 8 * swizzle::kChunkBytes;
  }

  // A barrier of the threads that hold results.
  LAMINA_DEVICE static void sync() { dev::block_sync(); }
  // The warps that load keys and values, and the index of this warp among them.
  static constexpr int kLoadWarps = kWarps;
  LAMINA_DEVICE static int load_warp() { return dev::warp(); }
  // Warps of the same rows are neighbours, so rows that do not exist leave all schedulers the same work.
  LAMINA_DEVICE static int warp_m() { return dev::warp() / kWarpsN; }
  LAMINA_DEVICE static int warp_n() { return dev::warp() % kWarpsN; }
  // Whether the tile has rows for this warp. Other warps only load.
  LAMINA_DEVICE static bool has_rows() {
    // The vote tells the compiler that all lanes agree.
    return kWarpsM == 1 || dev::any(warp_m() * kWarpRows < Sm80Shape::at(&Place::rows));
  }
  // The row of the block that this lane holds in half `half` of tile `tile` of an accumulator.
  LAMINA_DEVICE static int row_of(int tile, int half) {
    return warp_m() * kWarpRows + tile * 16 + half * 8 + dev::lane() / 4;
  }

  // The element of values that this lane holds in element `e` of tile `tile` of a result (products.cuh).
  LAMINA_DEVICE static int element_of(int tile, int e) {
    const int in_tile = dev::lane() % 4 * 2 + e % 2, first = warp_n() * kTilesElement * 8;
    return kIsQuantized ? first + tile / 4 * 32 + in_tile * 4 + tile % 4
                        : first + tile * 8 + in_tile;
  }

  // The part of a result that a thread holds: of its rows the sums of weighted values, the sums of weights, and the
  // exponent of 2 relative to which both count.
  struct State {
    float values[kTilesM][kTilesElement][4];
    float weights[kTilesM][4];  // elements 0 and 1 are equal, and so are 2 and 3
    float exponent[kTilesM][2];
  };
  static constexpr int kStateWords = kTilesM * (kTilesElement + 1);  // of four floats, a thread
};

}  // namespace lamina::paged_attention
