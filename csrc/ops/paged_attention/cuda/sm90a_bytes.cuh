// The producer warps of paged_attention on sm_90a for caches of one byte an element: they copy rows of bytes, widen them and
// fill the stages of the ring.
//
// Each warp copies its rows of keys and values into tiles of bytes, Shape::kAhead of which are on their way at once. A lane
// widens the chunks that it copied itself, so it waits for its own copies alone, and a tile of bytes is free for the next
// copies as soon as the lane has read it. Two neighbours among the wide chunks come from one of bytes. Eight lanes take four
// chunks of bytes of two rows: each of their stores hits all bank groups (layout/swizzle.h). Keys get the type of the
// queries, values that of the weights. wgmma reads shared memory through another proxy than these stores, so a fence comes
// before a stage is full.
#pragma once

#include "block/cluster.cuh"
#include "block/ring.cuh"
#include "ops/paged_attention/cuda/bytes.cuh"
#include "ops/paged_attention/cuda/loads.cuh"
#include "ops/paged_attention/cuda/sm90a_shape.cuh"

namespace lamina::paged_attention {

// The tiles of bytes. The chunks that a warp copies at a time lie in the order of its lanes.
template <class Wide>
struct RawShape : Wide {
  static constexpr int kRowChunks = Wide::kDim / swizzle::kChunkBytes;
  static constexpr int kTileBytes = Wide::kRawTileBytes;
  static constexpr int kCopyLanes = 4, kCopyRows = dev::kWarpLanes / kCopyLanes;
  static constexpr int kCopyBytes = dev::kWarpLanes * swizzle::kChunkBytes;

  LAMINA_DEVICE static int chunk_at(int row, int chunk) {
    return copy_at(
        Wide::kRawAt + (row % kCopyRows * kCopyLanes + chunk % kCopyLanes) * swizzle::kChunkBytes,
        row, chunk);
  }
  LAMINA_DEVICE static int copy_at(int at, int rows, int chunks) {
    return at + (rows / kCopyRows * (kRowChunks / kCopyLanes) + chunks / kCopyLanes) * kCopyBytes;
  }
};

template <class Shape>
class Sm90aByteProducer {
 public:
  using Cursor = RingCursor<Shape::kStages>;

  // Fills stages with the keys and values of a piece.
  LAMINA_DEVICE void fill(const KernelArgs& args) {
    Loads<Raw> loads(args);
    int block = 0, steps = 0, under_way = 0;  // blocks of columns
#pragma unroll 1
    while (!loads.is_done() || under_way > 0) {
      const bool is_late = steps == kBlocks, has_next = !loads.is_done();
      if (is_late) fill_stage<typename Shape::T>(2 * block);
      if (has_next) loads.copy_keys(loads.take_block(), 2 * block);
      dev::cp_async_commit();  // also of nothing: the number of groups says which have landed
      if (is_late) fill_stage<typename Shape::W>(2 * block + 1);
      if (has_next) loads.copy_values(2 * block + 1);
      dev::cp_async_commit();
      steps += is_late ? 0 : 1;
      under_way += (has_next ? 1 : 0) - (is_late ? 1 : 0);
      block = block + 1 == kBlocks ? 0 : block + 1;
    }
  }

 private:
  using Raw = RawShape<Shape>;
  static constexpr int kRows = Loads<Raw>::kRows, kBlocks = Shape::kAhead / 2;
  static_assert(Shape::kAhead % 2 == 0 && Shape::kStages >= 3);

  // Widens the tile that was copied kAhead groups ago into the next stage.
  template <class To>
  LAMINA_DEVICE void fill_stage(int tile) {
    dev::cp_async_wait<Shape::kAhead - 1>();
    // The ring starts empty: the phase before the first counts as done.
    dev::mbarrier_wait(&Shape::barriers().empty[next_.stage], next_.parity ^ 1);
    widen_rows<To>(tile * Raw::kTileBytes, next_.stage * Shape::kTileBytes);
    dev::fence_proxy_async();
    arrive_in_cluster<1>(&Shape::barriers().full[next_.stage]);
    next_.advance();
  }

  // Widens the chunks of this lane.
  template <class To>
  LAMINA_DEVICE static void widen_rows(int tile, int stage) {
    const int row = Loads<Raw>::first_row() + dev::lane() / Raw::kCopyLanes;
    const int chunk = dev::lane() % Raw::kCopyLanes;
    const int from = tile + Raw::chunk_at(row, chunk);
    const int to[2] = {stage + Shape::chunk_at(row, 2 * chunk),
                       stage + Shape::chunk_at(row, 2 * chunk + 1)};
#pragma unroll
    for (int r = 0; r < kRows; r += Raw::kCopyRows)
#pragma unroll
      for (int c = 0; c < Raw::kRowChunks; c += Raw::kCopyLanes) {
        const auto bytes = dev::load_shared(
            reinterpret_cast<const dev::U32x4*>(Shape::smem(Raw::copy_at(from, r, c))));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t low[2], high[2];
          widen<Shape::kElements, To>(bytes.x[half * 2], low);
          widen<Shape::kElements, To>(bytes.x[half * 2 + 1], high);
          dev::store_shared(
              reinterpret_cast<dev::U32x4*>(Shape::smem(Shape::copy_at(to[half], r, 2 * c))),
              {{low[0], low[1], high[0], high[1]}});
        }
      }
  }

  Cursor next_;
};

}  // namespace lamina::paged_attention
