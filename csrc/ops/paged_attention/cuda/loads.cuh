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
  static constexpr int kRows = kColumns / Shape::kLoadWarps;  // of a warp
  static_assert(kRows <= dev::kWarpLanes && kRows % 8 == 0);
  LAMINA_DEVICE static int first_row() { return Shape::load_warp() * kRows; }

  // The blocks of columns of the split.
  LAMINA_DEVICE explicit Loads(const KernelArgs& args) : args_(args), walk_(args) {
    if (!walk_.is_done()) read_entry();
  }

  // Whether all keys have been started.
  LAMINA_DEVICE bool is_done() const { return walk_.is_done(); }

  // Whether query rows of the tile see all of the `slots` columns of the next block among which this warp's rows are. slots: a
  // power of two, at least kRows.
  LAMINA_DEVICE bool sees_all(int slots) const {
    const int32_t first = walk_.first_column() + (first_row() & -slots);
    return first >= Shape::at(&Place::any_low) && Shape::at(&Place::any_high) - first >= slots;
  }

  // The slot of a page where a row of keys and values lies. Page -1: none.
  struct Spot {
    int32_t page = -1, slot = 0;
  };

  // Takes the next block: where this lane's row lies. Reads the entry for the block after it.
  LAMINA_DEVICE Spot take_block() {
    if (args_.depths != nullptr) store_positions();
    Spot at;
    if (next_slot_ >= 0) {
      const int32_t index = args_.page(next_slot_);
      at = {entry_, next_slot_ - index * static_cast<int32_t>(args_.p.k.page)};
      if (at.page < 0 || at.page >= args_.p.k.pages) {
        kv::report(args_.error, kv::ErrorOp::kPagedAttention, kv::ErrorArgument::kBlockTable,
                   at.page, Shape::at(&Tile::request), index);
        at.page = -1;
      }
    }
    walk_.advance(args_);
    if (!walk_.is_done()) read_entry();
    return at;
  }

  // Starts to copy this warp's rows of keys of the block that was taken last. at: what take_block() returned.
  LAMINA_DEVICE void copy_keys(const Spot& at, int stage) {
    translate(at, stage);
    copy_rows(args_.p.k, args_.k_copy_bytes, Shape::kKeyRowsAt, stage);
  }
  // The same with values, after the keys.
  LAMINA_DEVICE void copy_values(int stage) const {
    copy_rows(args_.p.v, args_.v_copy_bytes, Shape::kValueRowsAt, stage);
  }

  // Starts to fill this stage, the next of the ring, with the keys of the next block or, if there is none, with nothing.
  LAMINA_DEVICE void start_keys(int stage) {
    has_values_ = !walk_.is_done();
    if (has_values_) copy_keys(take_block(), stage);
    dev::cp_async_commit();
  }
  // The same with the values of the block whose keys were started last.
  LAMINA_DEVICE void start_values(int stage) {
    if (has_values_) copy_values(stage);
    dev::cp_async_commit();
  }

 private:
  LAMINA_DEVICE static bool owns_row() { return dev::lane() < kRows; }
  LAMINA_DEVICE static int row() { return first_row() + dev::lane(); }

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

  // Leaves the addresses of this lane's row to the lanes that copy it.
  LAMINA_DEVICE void translate(Spot at, int stage) {
    there_ = dev::ballot(at.page >= 0);
    if (at.page < 0) at = {0, 0};  // a valid address, although nothing is read from it
    dev::warp_sync();              // all lanes have read the addresses of the block before
    if (owns_row()) {
      store_addresses(at);
      if constexpr (Shape::kIsQuantized)
        copy_scales(at, Shape::scales_of(stage, walk_.index() - 1));
    }
    dev::warp_sync();
  }

  LAMINA_DEVICE void store_addresses(const Spot& at) const {
    const Params& p = args_.p;
    const int32_t head = Shape::at(&Place::head);
    const uint64_t key = reinterpret_cast<uint64_t>(p.k.data) +
                         static_cast<uint64_t>(p.k.offset(at.page, at.slot, head) * kSize);
    dev::store_shared(address(Shape::kKeyRowsAt, row()), key);
    uint64_t value = key + static_cast<uint64_t>(args_.value_distance);
    if (!args_.values_match)
      value = reinterpret_cast<uint64_t>(p.v.data) +
              static_cast<uint64_t>(p.v.offset(at.page, at.slot, head) * kSize);
    dev::store_shared(address(Shape::kValueRowsAt, row()), value);
  }

  LAMINA_DEVICE void copy_scales(const Spot& at, int place) const {
    const Params& p = args_.p;
    const int32_t head = Shape::at(&Place::head), bytes = there_ >> dev::lane() & 1 ? 4 : 0;
    if (p.k_scale.is_per_token())
      dev::cp_async<4>(Shape::scales(place, false) + row(), &p.k_scale.at(at.page, at.slot, head),
                       bytes);
    if (p.v_scale.is_per_token()) {
      dev::cp_async<4>(Shape::scales(place, true) + row(), &p.v_scale.at(at.page, at.slot, head),
                       bytes);
    } else if (Shape::kAlwaysScales) {
      dev::store_shared(Shape::scales(place, true) + row(), 1.0f);
    }
  }

  // kLanes lanes copy neighbouring chunks of a row. A lane copies every kLanes-th chunk of every kStep-th row, so that
  // the places of all its chunks follow from that of the first.
  static constexpr int kLanes = Shape::kCopyLanes;
  static constexpr int kStep = dev::kWarpLanes / kLanes;
  static_assert(Shape::kRowChunks % kLanes == 0 && kRows % kStep == 0);

  LAMINA_DEVICE void copy_rows(const kv::Cache& cache, int copy_bytes, int rows_at,
                               int stage) const {
    const auto* const base = static_cast<const std::byte*>(cache.data);
    const int row_bytes = static_cast<int>(cache.head_dim) * kSize;
    if (copy_bytes == swizzle::kChunkBytes) {
      start_copies<kRows>(row_bytes, rows_at, stage, [](auto* to, auto* from, int valid) {
        dev::cp_async<16>(to, from, valid > 0 ? 16 : 0);
      });
    } else {
      start_copies<1>(row_bytes, rows_at, stage, [&](auto* to, auto* from, int valid) {  // rare
        copy_unaligned(copy_bytes, to, from, base, valid);
      });
    }
  }

  template <int kUnrolled>
  LAMINA_DEVICE void start_copies(int row_bytes, int rows_at, int stage, const auto& copy) const {
    const int own_row = dev::lane() / kLanes, chunk = dev::lane() % kLanes;
    const int left = row_bytes - chunk * swizzle::kChunkBytes;
    const uint32_t there = there_ >> own_row;
    const int first = stage * Shape::kTileBytes + Shape::chunk_at(first_row() + own_row, chunk);
#pragma unroll kUnrolled
    for (int r = 0; r < kRows; r += kStep) {
      const auto* const from = reinterpret_cast<const std::byte*>(
                                   dev::load_shared(address(rows_at, first_row() + own_row + r))) +
                               chunk * swizzle::kChunkBytes;
#pragma unroll kUnrolled
      for (int c = 0; c < Shape::kRowChunks; c += kLanes) {
        const int rest = left - c * swizzle::kChunkBytes;
        const int valid = !(there >> r & 1) || rest < 0 ? 0 : rest < 16 ? rest : 16;
        copy(Shape::smem(Shape::copy_at(first, r, c)), from + c * swizzle::kChunkBytes, valid);
      }
    }
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
  bool has_values_ = false;             // whether there were keys to start last
  uint32_t there_ = 0;                  // bit i: row i of this warp has a key and a value
  int32_t next_slot_ = -1, entry_ = 0;  // of this lane's column in the next block
};

}  // namespace lamina::paged_attention
