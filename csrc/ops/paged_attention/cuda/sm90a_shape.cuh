// The sizes of a block of threads of paged_attention on sm_90a, and its shared memory: what shape.cuh says for sm_80.
//
// Rows of keys, values and queries lie in boxes of 64 elements: a row of a box is the run of 128 bytes of wgmma's swizzle, and
// eight rows are an atom. As keys a box is K-major, as values N-major.
#pragma once

#include "layout/matrix_descriptor.h"
#include "ops/paged_attention/cuda/shape.cuh"

namespace lamina::paged_attention {

struct Sm90aConfig {
  int rows;    // of a tile, 64 for each math warpgroup
  int dim;     // the padded head_dim of keys and values
  int stages;  // of the ring; a stage holds the keys or the values of a block of columns
  int ahead;  // stages that are being filled at once; of bytes the tiles on their way, an even number
  Elements cache = Elements::kHalf;
};

inline constexpr int kBoxElements = 64;

template <Sm90aConfig kConfig, class Query>
struct Sm90aShape : InSmem<Sm90aShape<kConfig, Query>> {
  using InSmem<Sm90aShape>::smem;
  using T = Query;
  static constexpr Elements kElements = kConfig.cache;
  static constexpr bool kIsQuantized = kElements != Elements::kHalf;
  static constexpr bool kRingHasBytes = false, kHasSplits = false;
  // The type of weights and values in products. Weights times scales may be beyond f16.
  using W = std::conditional_t<kIsQuantized, BF16, T>;

  static constexpr int kRows = kConfig.rows, kDim = kConfig.dim, kStages = kConfig.stages,
                       kAhead = kConfig.ahead;
  static constexpr int kWarpgroupWarps = 4, kWarpgroupRows = 64;
  static constexpr int kWarpgroups = kRows / kWarpgroupRows;
  // The math warps come first; kThreads are their threads. The warpgroup behind them loads.
  static constexpr int kWarps = kWarpgroups * kWarpgroupWarps, kWarpsM = kWarps, kWarpsN = 1;
  static constexpr int kThreads = kWarps * dev::kWarpLanes;
  static constexpr int kLoadWarps = kWarpgroupWarps;
  static constexpr int kTilesM = 1, kTilesColumn = kColumns / 8, kTilesElement = kDim / 8;
  static constexpr int kWarpRows = 16;
  static constexpr bool kKeepsQueries = kDim <= 128;  // in registers

  static constexpr Swizzle kSwizzle = Swizzle::k128;
  static constexpr int kRunBytes = 128, kAtomBytes = 8 * kRunBytes;
  static constexpr int kBoxChunks = kRunBytes / swizzle::kChunkBytes;
  static constexpr int kBoxBytes = kColumns * kRunBytes;  // of keys or values
  static constexpr int kRowChunks = kDim / 8;
  static constexpr int kBoxes = kDim / kBoxElements;  // of a row
  static constexpr int kTileBytes = kBoxes * kBoxBytes;
  static constexpr int kCopyLanes = 8;
  // Tiles of bytes, before they are widened (sm90a_bytes.cuh).
  static constexpr int kRawTiles = kIsQuantized ? kAhead : 0, kRawTileBytes = kColumns * kDim;
  static_assert(kDim % kBoxElements == 0 && kRunBytes == swizzle_bytes(kSwizzle));
  static_assert(kTileBytes % swizzle_alignment(kSwizzle) == 0);

  struct Barriers {
    dev::MBarrier full[kStages], empty[kStages];
  };
  // Keys are copied kStages + kRawTiles tiles before their stage is free again, and scores need more of a block then.
  static constexpr int kPositionBlocks = (kStages + kRawTiles) / 2 + 2;
  static constexpr int kQueryBoxBytes = kRows * kRunBytes;
  static constexpr int kQueriesAt = kStages * kTileBytes;
  static constexpr int kRawAt = kQueriesAt + kRows * kDim * 2;
  static constexpr int kScalesAt = kRawAt + kRawTiles * kRawTileBytes;
  static constexpr int kPositionsAt =
      kScalesAt + (kIsQuantized ? kPositionBlocks * 2 * kColumns * 4 : 0);
  static constexpr int kMaximaAt =
      kPositionsAt + kPositionBlocks * kColumns * 4;  // none: a warp has whole rows
  static constexpr int kRowsAt = kMaximaAt;
  static constexpr int kPlaceAt = kRowsAt + kRows * static_cast<int>(sizeof(RowInfo));
  static constexpr int kHeaderAt = kPlaceAt + static_cast<int>(sizeof(Place));
  static constexpr int kKeyRowsAt = kHeaderAt + static_cast<int>(sizeof(Header));
  static constexpr int kValueRowsAt = kKeyRowsAt + kColumns * 8;
  static constexpr int kBarriersAt = kValueRowsAt + kColumns * 8;
  static constexpr int kFlagAt = kBarriersAt + static_cast<int>(sizeof(Barriers));
  static constexpr int kEndsAt = kFlagAt + 4 * kWarps;  // of warpgroups: see end_column()
  static constexpr int kSmemBytes = kEndsAt + 4 * kWarpgroups;
  static_assert(kSmemBytes <= 227 * 1024);

  LAMINA_DEVICE static Barriers& barriers() {
    return *reinterpret_cast<Barriers*>(smem(kBarriersAt));
  }
  // index: of the block of columns in its walk.
  LAMINA_DEVICE static int32_t* positions(int index) {
    return reinterpret_cast<int32_t*>(smem(kPositionsAt)) + index % kPositionBlocks * kColumns;
  }

  // Whether weights are always multiplied by scales of values, which are 1 if there are none for each column. Tiles of the
  // largest head_dim of float8 have no registers for the choice.
  static constexpr bool kAlwaysScales = kElements == Elements::kE4M3 && kDim > 192;
  // The place of the scales of a block of columns: they outlive the stage of its keys.
  LAMINA_DEVICE static int scales_of(int, int index) { return index % kPositionBlocks; }
  LAMINA_DEVICE static float* scales(int place, bool of_values) {
    return reinterpret_cast<float*>(smem(kScalesAt)) + (place * 2 + of_values) * kColumns;
  }

  // The byte of a tile of keys or values where a chunk of a row starts.
  LAMINA_DEVICE static int chunk_at(int row, int chunk) {
    return chunk / kBoxChunks * kBoxBytes + in_box(row, chunk);
  }
  // The same for queries.
  template <int kCount>
  LAMINA_DEVICE static int half_chunk_at(int row, int chunk) {
    static_assert(kCount == kDim);
    return chunk / kBoxChunks * kQueryBoxBytes + in_box(row, chunk);
  }

  LAMINA_DEVICE static int copy_at(int at, int rows, int chunks) {
    return (at ^ rows % 8 * swizzle::kChunkBytes) + rows * kRunBytes +
           chunks / kBoxChunks * kBoxBytes;
  }

  LAMINA_DEVICE static int step(int at, int chunks) {
    return (at ^ chunks % kBoxChunks * swizzle::kChunkBytes) + chunks / kBoxChunks * kQueryBoxBytes;
  }

  LAMINA_DEVICE static void sync() { dev::barrier_sync(1, kThreads); }
  LAMINA_DEVICE static int load_warp() { return dev::warp() - kWarps; }
  LAMINA_DEVICE static int warp_m() { return dev::warp(); }
  LAMINA_DEVICE static int warp_n() { return 0; }
  LAMINA_DEVICE static int row_of(int, int half) {
    return warp_m() * kWarpRows + half * 8 + dev::lane() / 4;
  }
  LAMINA_DEVICE static int element_of(int tile, int e) {
    return tile * 8 + dev::lane() % 4 * 2 + e % 2;
  }

  // As in Sm80Shape; while blocks of columns are added, `weights` are the sums of the columns of each element.
  struct State {
    float values[kTilesM][kTilesElement][4];
    float weights[kTilesM][4];
    float exponent[kTilesM][2];
  };
  static constexpr int kStateWords = kTilesElement + 1;  // of four floats, a thread

 private:
  LAMINA_DEVICE static int in_box(int row, int chunk) {
    return row * kRunBytes + swizzle::row_chunk(row, chunk % kBoxChunks) * swizzle::kChunkBytes;
  }
};

}  // namespace lamina::paged_attention
