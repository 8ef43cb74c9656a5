// The ring of keys and values: its stages are filled in the order keys, values, keys, ... of the blocks of columns.
//
// A warp copies kColumns / kLoadWarps rows of each tile. One lane for each of these rows translates its slot to the addresses of
// its key and its value, from an entry of the block table that it read one block before, and leaves them in shared memory
// for the lanes that copy the row. Keys and values that no query row of the tile sees, and those on pages that do not
// exist, become zeros.
#pragma once

#include "block/row_copy.cuh"
#include "kv/error_word.cuh"
#include "ops/paged_attention/cuda/rows.cuh"

namespace lamina::paged_attention {

template <class Shape>
class Loads {
 public:
  // The blocks of columns of the split.
  LAMINA_DEVICE explicit Loads(const KernelArgs& args) : args_(args), walk_(args) {
    if (!walk_.is_done()) read_entry();
  }

  LAMINA_DEVICE bool is_done() const { return !has_values_ && walk_.is_done(); }

  // Starts to fill this stage, the next of the ring, if there is more to load.
  LAMINA_DEVICE void start_next(int stage) {
    const Params& p = args_.p;
    if (has_values_) {
      has_values_ = false;
      copy_rows(p.v, args_.v_copy_bytes, Shape::kValueRowsAt, stage);
    } else if (!walk_.is_done()) {
      has_values_ = true;
      if (args_.depths != nullptr) store_positions();
      translate(stage);
      copy_rows(p.k, args_.k_copy_bytes, Shape::kKeyRowsAt, stage);
    }
    dev::cp_async_commit();
  }

 private:
  static constexpr int kRows = kColumns / Shape::kLoadWarps;  // of a warp
  static_assert(kRows <= dev::kWarpLanes);

  LAMINA_DEVICE static bool owns_row() { return dev::lane() < kRows; }
  LAMINA_DEVICE static int row() { return first_row() + dev::lane(); }
  LAMINA_DEVICE static int first_row() { return Shape::load_warp() * kRows; }

  // The slot of this lane's column in the block where the walk is, or -1 if nobody sees the column.
  LAMINA_DEVICE int32_t find_slot() const {
    const int32_t column = walk_.first_column() + row();
    if (!owns_row() || column < Shape::at(&Place::any_low)) return -1;
    if (walk_.token() < 0) return column < Shape::at(&Place::any_high) ? column : -1;
    const int32_t node = column - Shape::at(&Place::prefix);
    if (node < 0) return column;
    if (node >= dev::load_global(args_.work.node_counts + walk_.token())) return -1;
    return column - node +
           dev::load_global(args_.work.nodes + walk_.token() * args_.work.max_nodes + node);
  }

  // Reads the entry of the block table for the block where the walk is.
  LAMINA_DEVICE void read_entry() {
    next_slot_ = find_slot();
    if (next_slot_ >= 0)
      entry_ = dev::load_global(args_.p.block_table.row(Shape::at(&Tile::request)) +
                                args_.page(next_slot_));
  }

  // The address of this lane's row in shared memory.
  LAMINA_DEVICE static uint64_t* address(int rows_at, int row) {
    return reinterpret_cast<uint64_t*>(Shape::smem(rows_at)) + row;
  }
  static constexpr int kSize = Shape::kIsQuantized ? 1 : 2;  // bytes of an element

  // Finds the addresses of this lane's column in the block, 0 if there is none, and reads the entry for the next block.
  LAMINA_DEVICE void translate(int stage) {
    int32_t page = -1, slot = 0;
    if (next_slot_ >= 0) {
      page = entry_;
      const int32_t index = args_.page(next_slot_);
      slot = next_slot_ - index * static_cast<int32_t>(args_.p.k.page);
      if (page < 0 || page >= args_.p.k.pages) {
        kv::report(args_.error, kv::ErrorOp::kPagedAttention, kv::ErrorArgument::kBlockTable, page,
                   Shape::at(&Tile::request), index);
        page = -1;
      }
    }
    dev::warp_sync();  // all lanes have read the addresses of the block before
    if (owns_row()) {
      store_address(Shape::kKeyRowsAt, args_.p.k, page, slot);
      store_address(Shape::kValueRowsAt, args_.p.v, page, slot);
      if constexpr (Shape::kIsQuantized) {
        copy_scale(args_.p.k_scale, Shape::scales(stage, false), page, slot);
        copy_scale(args_.p.v_scale, Shape::scales(stage, true), page, slot);
      }
    }
    dev::warp_sync();
    walk_.advance(args_);
    if (!walk_.is_done()) read_entry();
  }

  LAMINA_DEVICE static void store_address(int rows_at, const kv::Cache& cache, int32_t page,
                                          int32_t slot) {
    const auto* const base = static_cast<const std::byte*>(cache.data);
    const int64_t offset = cache.offset(page, slot, Shape::at(&Place::head)) * kSize;
    dev::store_shared(address(rows_at, row()),
                      page < 0 ? uint64_t{0} : reinterpret_cast<uint64_t>(base + offset));
  }

  LAMINA_DEVICE static void copy_scale(const kv::Scales& scales, float* to, int32_t page,
                                       int32_t slot) {
    if (!scales.is_per_token()) return;
    dev::cp_async<4>(to + row(),
                     page < 0 ? scales.data : &scales.at(page, slot, Shape::at(&Place::head)),
                     page < 0 ? 0 : 4);
  }

  LAMINA_DEVICE static void copy_rows(const kv::Cache& cache, int copy_bytes, int rows_at,
                                      int stage) {
    constexpr int kCopies = kRows * Shape::kRowChunks / dev::kWarpLanes;
    static_assert(kCopies * dev::kWarpLanes == kRows * Shape::kRowChunks);
    const auto* const base = static_cast<const std::byte*>(cache.data);
    const int row_bytes = static_cast<int>(cache.head_dim) * kSize;
    if (copy_bytes == swizzle::kChunkBytes) {
#pragma unroll 2  // all at once their addresses would need more registers than the products
      for (int i = 0; i < kCopies; ++i)
        start_copy(i, rows_at, row_bytes, base, stage,
                   [](auto* to, auto* from, int valid) { dev::cp_async<16>(to, from, valid); });
    } else {
#pragma unroll 1  // slow and rare
      for (int i = 0; i < kCopies; ++i)
        start_copy(i, rows_at, row_bytes, base, stage, [&](auto* to, auto* from, int valid) {
          copy_unaligned(copy_bytes, to, from, base, valid);
        });
    }
  }

  LAMINA_DEVICE static void start_copy(int i, int rows_at, int row_bytes, const std::byte* base,
                                       int stage, const auto& copy) {
    const int index = i * dev::kWarpLanes + dev::lane();
    const int row = first_row() + index / Shape::kRowChunks, chunk = index % Shape::kRowChunks;
    const uint64_t from = dev::load_shared(address(rows_at, row));
    const int left = row_bytes - chunk * swizzle::kChunkBytes;
    const int valid = from == 0 || left < 0 ? 0 : left < 16 ? left : 16;
    copy(Shape::smem(stage * Shape::kTileBytes + Shape::chunk_at(row, chunk)),
         valid > 0 ? reinterpret_cast<const std::byte*>(from) + chunk * swizzle::kChunkBytes : base,
         valid);
  }

  LAMINA_DEVICE void store_positions() const {
    const int32_t nodes = Shape::at(&Tile::tree_len);
    const int32_t node = next_slot_ - Shape::at(&Place::prefix);
    const int32_t token = Shape::at(&Tile::token) + Shape::at(&Tile::q_len) - nodes + node;
    if (owns_row())
      dev::store_shared(Shape::positions(walk_.index()) + row(),
                        node >= 0 && node < nodes ? TileRows<Shape>::depth(args_, token) : 0);
  }

  const KernelArgs& args_;
  Walk<Shape> walk_;                    // the next block whose keys are loaded
  bool has_values_ = false;             // whether the values of the block before are next
  int32_t next_slot_ = -1, entry_ = 0;  // of this lane's column in the next block
};

}  // namespace lamina::paged_attention
