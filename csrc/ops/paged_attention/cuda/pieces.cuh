// The pieces of work of a block of threads: which they are, and what becomes of their results.
#pragma once

#include "ops/paged_attention/cuda/split_tree.cuh"

namespace lamina::paged_attention {

template <class Shape>
struct Pieces {
  using State = typename Shape::State;
  using Rows = TileRows<Shape>;
  using Result = Results<Shape>;
  using Tree = SplitTree<Shape>;
  using Parts = Line<Shape>;

  // Calls body(at) for the pieces of this block of threads; body leaves `at` at Shape::place(). The code after a piece
  // reads it from there, because the loop over columns leaves no registers for it. The line of parts is loaded.
  LAMINA_DEVICE static void for_each(const KernelArgs& args, const auto& body) {
    const Work& work = args.work;
    int32_t part = dev::block_index().x;
    if (part >= Parts::parts()) return;
    int64_t visit = Parts::begin(part);
#pragma unroll 1
    while (true) {
      body(place_of(args, part, visit));
      visit = Shape::at(&Place::first) + Shape::at(&Place::end);
      part = Shape::at(&Place::part);
      if (visit == Parts::begin(part + 1)) {
        part += work.blocks;
        if (part >= Parts::parts()) return;
        visit = Parts::begin(part);
      }
      dev::block_sync();  // all warps have read shared memory
    }
  }

  // Computes the piece at Shape::place(). attend(state): state = the result over the columns of the split.
  LAMINA_DEVICE static void compute(const KernelArgs& args, const auto& attend) {
    State state;
#pragma unroll 1
    do {
      attend(state);
      keep(args.work, state);
    } while (find_next_split(args.work));
    if (merge_if_shared(args, state)) Result::write(args, state);
  }

 private:
  // Whether this block of threads is the last of those that share the tile. The results of all are then visible.
  LAMINA_DEVICE static bool is_last(int32_t* arrivals, int64_t others) {
    auto* const flag = reinterpret_cast<int32_t*>(Shape::smem(Shape::kFlagAt));
    Shape::sync();  // all threads have stored their results
    if (dev::thread_index() == 0) {
      dev::fence_device();
      dev::store_shared(flag, dev::atomic_add(arrivals, 1) == others ? 1 : 0);
      dev::fence_device();
    }
    Shape::sync();
    return dev::load_shared(flag) != 0;
  }

  // A piece keeps its results in one of two places of its part: the piece that begins a tile in the second.
  LAMINA_DEVICE static int area() { return Shape::at(&Place::begin) == 0 ? 1 : 0; }
  LAMINA_DEVICE static bool is_whole() {
    return Shape::at(&Place::begin) == 0 && Shape::at(&Place::end) == Shape::at(&Place::visits);
  }

  // Keeps the result of a split, or of a piece without splits, unless the state is the result of the whole tile.
  LAMINA_DEVICE static void keep(const Work& work, State& state) {
    const int64_t part = Shape::at(&Place::part);
    if (has_splits(work)) {
      if (!is_whole() || Shape::at(&Place::visits) > 1) Tree::keep(work, part, area(), state);
    } else if (!is_whole()) {
      Result::store(state, slot(work, part, area()));
    }
  }

  // Whether the state is the result of the whole tile, for this block of threads to write: merges the results of all parts
  // that share the tile if this block is the last of them.
  LAMINA_DEVICE static bool merge_if_shared(const KernelArgs& args, State& state) {
    const Work& work = args.work;
    if (is_whole()) {
      const int32_t part = Shape::at(&Place::part);
      if (has_splits(work) && Shape::at(&Place::visits) > 1) Tree::merge(work, part, part, state);
      return true;
    }
    const int64_t begin = Shape::at(&Place::first), end = begin + Shape::at(&Place::visits);
    const int32_t first = Parts::part_of(begin), last = Parts::part_of(end - 1);
    if (dev::thread_index() == 0) {
      dev::store_shared(&Shape::place()->first_part, first);
      dev::store_shared(&Shape::place()->last_part, last);
    }
    if (!is_last(work.arrivals + first, last - first)) return false;
    if (has_splits(work)) {
      Tree::merge(work, first, last, state);
    } else {
      Result::clear(state);
      Result::merge_all(
          [&](int32_t part) {
            return slot(work, part, part == Shape::at(&Place::first_part) ? 1 : 0);
          },
          state);
    }
    return true;
  }

  // Kernels without splits have no registers to spare for them.
  LAMINA_DEVICE static bool has_splits(const Work& work) {
    return Shape::kHasSplits && work.has_splits();
  }

  LAMINA_DEVICE static bool find_next_split(const Work& work) {
    if (!has_splits(work)) return false;
    const int32_t begin = Shape::at(&Place::split_end), end = Shape::at(&Place::end_block);
    if (begin >= end) return false;
    Shape::sync();  // all warps have read the ring and the split
    if (dev::thread_index() == 0) {
      dev::store_shared(&Shape::place()->split_begin, begin);
      dev::store_shared(&Shape::place()->split_end, split_end(work, begin, end));
    }
    Shape::sync();
    return true;
  }
  LAMINA_DEVICE static int32_t split_end(const Work& work, int32_t begin, int32_t end) {
    return end - begin < work.split_blocks ? end : begin + work.split_blocks;
  }

  // The tile of a visit: each round reads 32 tiles at equal distances.
  LAMINA_DEVICE static int32_t tile_of(const Work& work, int32_t tiles, int64_t visit) {
    int32_t low = 0, high = tiles;
    while (high - low > 1) {
      const int32_t step = (high - low + dev::kWarpLanes - 1) / dev::kWarpLanes;
      const int32_t probe = low + dev::lane() * step;
      const bool is_before = probe < high && dev::load_global(&work.tile[probe].visit) <= visit;
      // Lane 0 is before, and the lanes that are form a run.
      const uint32_t after = ~dev::ballot(is_before);
      int32_t count = 1;
      while (count < dev::kWarpLanes && !(after >> count & 1)) ++count;
      low += (count - 1) * step;
      high = low + step < high ? low + step : high;
    }
    return low;
  }

  LAMINA_DEVICE static float* slot(const Work& work, int64_t part, int64_t index) {
    return partial_slot(work, part, index);
  }

  // The piece of the part that begins with `visit`.
  LAMINA_DEVICE static Place place_of(const KernelArgs& args, int32_t part, int64_t visit) {
    const Work& work = args.work;
    const int64_t head_visits = Shape::at(&Header::head_visits);
    const int64_t head = visit / head_visits, first = head * head_visits;
    const int32_t index = tile_of(work, Shape::at(&Header::tiles), visit - first);
    const Tile tile = load_words(work.tile + index);
    const int64_t end = Parts::begin(part + 1);
    Place at{};
    at.tile = tile;
    at.part = part;
    at.visits = visits_of(work, tile);
    at.first = first + tile.visit;
    at.begin = visit - at.first;
    at.end = end - at.first < at.visits ? end - at.first : at.visits;
    at.head = static_cast<int32_t>(head);
    const int64_t left = int64_t{tile.q_len} * args.group - tile.row;
    at.rows = left < Shape::kRows ? static_cast<int32_t>(left) : Shape::kRows;
    const auto [any, all] =
        tile_columns(args.p, tile, tile.row / args.group, (tile.row + at.rows - 1) / args.group);
    at.any_low = Rows::clamp(any.low);
    at.any_high = Rows::clamp(any.high);
    at.all_low = Rows::clamp(all.low);
    at.all_high = Rows::clamp(all.high);
    at.prefix = tile.seq_len - tile.tree_len;
    at.shared_end = static_cast<int32_t>(ceil_div(any.high, kColumns));
    const auto block_of = [&](int64_t index) {
      const int64_t block = index * work.visit_blocks;
      return tile.first_block + (block < tile.blocks ? static_cast<int32_t>(block) : tile.blocks);
    };
    at.end_block = block_of(at.end);
    at.split_begin = block_of(at.begin);
    at.split_end = split_end(work, at.split_begin, at.end_block);
    if (work.has_splits() && tile.tree_len > 0) set_own(args, at);
    return at;
  }

  // With splits the nodes of the tile have columns of their own.
  LAMINA_DEVICE static void set_own(const KernelArgs& args, Place& at) {
    const int32_t plain = at.tile.q_len - at.tile.tree_len;
    const int32_t first = at.tile.row / args.group, last = (at.tile.row + at.rows - 1) / args.group;
    if (last < plain) return;
    at.own_token = at.tile.token + (first > plain ? first : plain);
    at.own_end = at.tile.token + last + 1;
    const int64_t whole = at.prefix / kColumns * kColumns;
    int64_t shared = whole;
    if (first < plain) {
      const ColumnRange seen = plain_columns(args.p, at.tile.seq_len, at.tile.q_len, plain - 1);
      shared = seen.high > shared ? seen.high : shared;
    }
    at.shared_end = static_cast<int32_t>(ceil_div(shared, kColumns));
    at.all_high = at.all_high < whole ? at.all_high : static_cast<int32_t>(whole);
  }
};

}  // namespace lamina::paged_attention
