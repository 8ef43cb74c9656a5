// PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor", "Tiled mode", "Swizzling modes".
#pragma once

#include <array>
#include <string>

#include "buffer.h"

namespace lamina::test {

// The place of a 16-byte chunk within its row, after the tables of "Swizzling modes". The number of the chunk is
// XORed with the number of the row for 128-byte rows, of the pair of rows for 64-byte rows, of the four rows for
// 32-byte rows.
inline int swizzled_chunk(dev::Swizzle swizzle, int row, int chunk) {
  switch (swizzle) {
    case dev::Swizzle::k128:
      return chunk ^ (row & 7);
    case dev::Swizzle::k64:
      return chunk ^ (row >> 1 & 3);
    case dev::Swizzle::k32:
      return chunk ^ (row >> 2 & 1);
    default:
      return chunk;
  }
}

// A tensor in a buffer of `bytes`, and a box of the tensor.
struct TileCase {
  const char* name;
  int rank, element_bytes;
  int64_t extent[4], stride_bytes[4];
  int box[4];
  dev::Swizzle swizzle;
  int32_t at[4];

  int box_bytes() const {
    int bytes = element_bytes;
    for (int i = 0; i < rank; ++i) bytes *= box[i];
    return bytes;
  }
  size_t tensor_bytes() const {
    int64_t bytes = extent[0] * element_bytes;
    for (int i = 1; i < rank; ++i) bytes += (extent[i] - 1) * stride_bytes[i];
    return static_cast<size_t>(bytes);
  }
  dev::TensorMap map(const void* base) const {
    dev::TensorMapSpec spec;
    spec.base = base;
    spec.rank = rank;
    spec.element_bytes = element_bytes;
    std::copy_n(extent, 4, spec.extent);
    std::copy_n(stride_bytes, 4, spec.stride_bytes);
    std::copy_n(box, 4, spec.box);
    spec.swizzle = swizzle;
    dev::TensorMap result;
    const Status status = dev::make_tensor_map(spec, result);
    if (!status.is_ok()) fail(__FILE__, __LINE__, status.message());
    return result;
  }
  // Calls visit(byte in shared memory, byte in the tensor or -1) for each byte of the box.
  template <class Visit>
  void each_byte(Visit visit) const {
    const int row_bytes = box[0] * element_bytes, rows = box_bytes() / row_bytes;
    for (int row = 0; row < rows; ++row) {
      int rest = row;
      bool is_inside = true;
      int64_t tensor_row = 0;
      for (int i = 1; i < rank; ++i) {
        const int64_t place = at[i] + rest % box[i];
        rest /= box[i];
        is_inside = is_inside && place >= 0 && place < extent[i];
        tensor_row += place * stride_bytes[i];
      }
      for (int byte = 0; byte < row_bytes; ++byte) {
        const int64_t column = at[0] + byte / element_bytes;
        const bool is_there = is_inside && column >= 0 && column < extent[0];
        visit(static_cast<size_t>(row * row_bytes + swizzled_chunk(swizzle, row, byte / 16) * 16 +
                                  byte % 16),
              is_there ? tensor_row + column * element_bytes + byte % element_bytes : -1);
      }
    }
  }
};

using Sw = dev::Swizzle;
inline const TileCase kTiles[] = {
    {"whole tensor", 2, 1, {64, 8}, {0, 64}, {64, 8}, Sw::kNone, {0, 0}},
    {"one row", 2, 4, {40, 3}, {0, 160}, {4, 1}, Sw::kNone, {36, 2}},
    {"wide rows", 2, 2, {300, 5}, {0, 608}, {256, 3}, Sw::kNone, {40, 1}},
    {"before the first", 2, 2, {40, 20}, {0, 96}, {32, 8}, Sw::kNone, {-5, -3}},
    {"beyond the last", 2, 2, {43, 20}, {0, 96}, {32, 8}, Sw::kNone, {29, 15}},
    {"nothing inside", 2, 1, {64, 8}, {0, 64}, {32, 4}, Sw::kNone, {64, 100}},
    {"nothing inside, before", 2, 1, {64, 8}, {0, 64}, {32, 4}, Sw::kNone, {0, -4}},
    {"narrower than a chunk", 2, 1, {7, 9}, {0, 16}, {16, 9}, Sw::kNone, {-4, 0}},
    {"swizzle 32", 2, 1, {96, 40}, {0, 112}, {32, 32}, Sw::k32, {17, 3}},
    {"swizzle 64", 2, 4, {50, 40}, {0, 208}, {16, 24}, Sw::k64, {11, 5}},
    {"swizzle 128", 2, 2, {200, 70}, {0, 400}, {64, 64}, Sw::k128, {64, 3}},
    {"swizzle 128, ragged", 2, 2, {90, 37}, {0, 192}, {64, 16}, Sw::k128, {64, 30}},
    {"swizzle 128, bytes", 2, 1, {130, 11}, {0, 144}, {128, 11}, Sw::k128, {3, 0}},
    {"rank 3", 3, 2, {24, 10, 6}, {0, 64, 640}, {16, 3, 4}, Sw::kNone, {5, 6, 1}},
    {"rank 3, swizzle 64, edges", 3, 1, {80, 7, 5}, {0, 80, 640}, {64, 5, 3}, Sw::k64, {30, 4, -1}},
    {"rank 3, permuted strides", 3, 4, {8, 5, 4}, {0, 256, 32}, {8, 5, 4}, Sw::k32, {0, 0, 0}},
    {"rank 4", 4, 1, {48, 4, 3, 5}, {0, 48, 192, 592}, {32, 2, 3, 2}, Sw::kNone, {9, 1, 0, 2}},
    {"rank 4, swizzle 128, edges",
     4,
     2,
     {100, 4, 3, 5},
     {0, 208, 832, 2512},
     {64, 3, 2, 3},
     Sw::k128,
     {-9, -1, 2, 4}},
};

constexpr int kTileAt = 1024, kTileSmemBytes = kTileAt + 16384;

template <int kRank, dev::Cache kCache>
struct TileLoadKernel : OneWarp {
  struct Args {
    dev::TensorMap map;
    int32_t at[kRank];
    int bytes;
    uint32_t* out;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    std::byte* const smem = dev::dynamic_smem();
    dev::MBarrier* const full = reinterpret_cast<dev::MBarrier*>(smem);
    if (dev::lane() == 0) {
      dev::tma_prefetch(&args.map);
      dev::mbarrier_init(full, 1);
      dev::fence_mbarrier_init();
      dev::mbarrier_arrive_expect_tx(full, args.bytes);  // zeros past the edges count too
      dev::tma_load<kRank, kCache>(smem + kTileAt, &args.map, full, args.at);
    }
    dev::warp_sync();
    dev::mbarrier_wait(full, 0);
    for (int word = dev::lane(); word < args.bytes / 4; word += 32)
      dev::store_global(args.out + word,
                        dev::load_shared(reinterpret_cast<uint32_t*>(smem + kTileAt) + word));
  }
};

// Fills shared memory with args.in and stores it to the tensor from kTileAt on.
template <int kRank>
struct TileStoreKernel : BlockOf<64> {
  struct Args {
    dev::TensorMap map;
    int32_t at[kRank];
    int bytes;
    const uint32_t* in;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    uint32_t* const smem = reinterpret_cast<uint32_t*>(dev::dynamic_smem() + kTileAt);
    for (int word = dev::thread_index(); word < args.bytes / 4; word += kThreads)
      dev::store_shared(smem + word, dev::load_global(args.in + word));
    dev::fence_proxy_async();
    dev::block_sync();
    if (dev::thread_index() == 0) {
      dev::tma_store<kRank>(&args.map, smem, args.at);
      dev::bulk_commit();
      dev::bulk_wait_read<0>();
    }
  }
};

template <int kRank, dev::Cache kCache>
void check_tile_load(const TileCase& tile) {
  const std::vector<uint8_t> in = distinct_bytes(tile.tensor_bytes());
  const size_t bytes = static_cast<size_t>(tile.box_bytes());
  DeviceBuffer<uint8_t> gmem_in(in), gmem_out(bytes);
  typename TileLoadKernel<kRank, kCache>::Args args{};
  args.map = tile.map(gmem_in.data());
  std::copy_n(tile.at, kRank, args.at);
  args.bytes = tile.box_bytes();
  args.out = reinterpret_cast<uint32_t*>(gmem_out.data());
  run<TileLoadKernel<kRank, kCache>>(args, {{1, 1, 1}, kTileSmemBytes});
  const std::vector<uint8_t> out = gmem_out.read();
  tile.each_byte([&](size_t byte, int64_t from) {
    at(tile.name, ", byte ", byte);
    CHECK_EQ(out[byte], from < 0 ? 0 : in[static_cast<size_t>(from)]);
  });
}

template <int kRank>
void check_tile_store(const TileCase& tile) {
  const std::vector<uint8_t> in = distinct_bytes(static_cast<size_t>(tile.box_bytes()));
  std::vector<uint8_t> want(tile.tensor_bytes(), 0x5a);
  DeviceBuffer<uint8_t> gmem_in(in), gmem_out(want);
  typename TileStoreKernel<kRank>::Args args{};
  args.map = tile.map(gmem_out.data());
  std::copy_n(tile.at, kRank, args.at);
  args.bytes = tile.box_bytes();
  args.in = reinterpret_cast<const uint32_t*>(gmem_in.data());
  run<TileStoreKernel<kRank>>(args, {{1, 1, 1}, kTileSmemBytes});
  tile.each_byte([&](size_t byte, int64_t to) {
    if (to >= 0) want[static_cast<size_t>(to)] = in[byte];
  });
  at(tile.name);
  CHECK(gmem_out.read() == want);
}

template <int kRank>
void check_tiles() {
  for (const TileCase& tile : kTiles)
    if (tile.rank == kRank) {
      check_tile_load<kRank, dev::Cache::kDefault>(tile);
      check_tile_load<kRank, dev::Cache::kStream>(tile);
      check_tile_store<kRank>(tile);
    }
}

TEST(vector_tma_tiles) {
  each_schedule([] {
    check_tiles<2>();
    check_tiles<3>();
    check_tiles<4>();
  });
}

// Two stores, each in its own group. The source of the first is overwritten after the copy has read it.
struct BulkStoreKernel : OneWarp {
  struct Args {
    dev::U32x4* out;  // [3][32]
  };
  LAMINA_DEVICE static dev::U32x4 value(uint32_t i) { return {{i, i + 1000, i + 2000, i + 3000}}; }
  LAMINA_DEVICE static void run(const Args& args) {
    dev::U32x4* const smem = reinterpret_cast<dev::U32x4*>(dev::dynamic_smem());
    const int lane = dev::lane();
    const auto fill = [&](int at, uint32_t first) {
      dev::store_shared(smem + at + lane, value(first + static_cast<uint32_t>(lane)));
      dev::fence_proxy_async();
      dev::warp_sync();
    };
    fill(0, 100);
    fill(32, 200);
    if (lane == 0) {
      dev::bulk_store(args.out, smem, 512);
      dev::bulk_commit();
      dev::bulk_store(args.out + 32, smem + 32, 512);
      dev::bulk_commit();
      dev::bulk_wait_read<1>();
    }
    dev::warp_sync();
    fill(0, 300);
    if (lane == 0) {
      dev::bulk_store(args.out + 64, smem, 256);
      dev::bulk_store(args.out + 80, smem + 16, 256);
      dev::bulk_commit();
      dev::bulk_wait<0>();
    }
  }
};

TEST(vector_bulk_store) {
  each_schedule([] {
    DeviceBuffer<uint32_t> gmem_out(3 * 32 * 4);
    run<BulkStoreKernel>({reinterpret_cast<dev::U32x4*>(gmem_out.data())}, {{1, 1, 1}, 1024});
    const std::vector<uint32_t> out = gmem_out.read();
    for (uint32_t i = 0; i < 96; ++i)
      for (uint32_t word = 0; word < 4; ++word)
        CHECK_EQ(out[i * 4 + word], (i / 32 + 1) * 100 + i % 32 + word * 1000);
  });
}

}  // namespace lamina::test
