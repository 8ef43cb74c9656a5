// The pieces of work of a block of threads: which they are, and what becomes of their results.
#pragma once

#include "ops/paged_attention/cuda/results.cuh"

namespace lamina::paged_attention {

template <class Shape>
struct Pieces {
  using State = typename Shape::State;
  using Rows = TileRows<Shape>;
  using Result = Results<Shape>;

  // Calls body(at) for the pieces of this block of threads; body leaves `at` at Shape::place(). The code after a piece
  // reads it from there, because the loop over columns leaves no registers for it.
  LAMINA_DEVICE static void for_each(const KernelArgs& args, const auto& body) {
    const Work& work = args.work;
    const int64_t part = dev::block_index().x;
    if (part >= parts_of(work).count) return;
    int64_t visit = parts_of(work).begin(part);
    int32_t index = tile_of(work, dev::load_global(&work.header->tiles), visit);
#pragma unroll 1
    while (true) {
      const int64_t end = parts_of(work).begin(part + 1);
      body(place_of(args, index, visit, end));
      visit = Shape::at(&Place::first) + Shape::at(&Place::end);
      index = Shape::at(&Place::next_tile);
      if (visit == parts_of(work).begin(part + 1)) return;
      dev::block_sync();  // all warps have read shared memory
    }
  }

  // Computes the piece at Shape::place(). attend(state): state = the result over the columns of the split.
  LAMINA_DEVICE static void compute(const KernelArgs& args, const auto& attend) {
    State state;
    int32_t split = 0;
#pragma unroll 1
    do {
      attend(state);
      keep(args.work, split++, state);
    } while (find_next_split(args.work));
    if (merge_if_shared(args.work, state)) Result::write(args, state);
  }

 private:
  // The places of the parts of a call.
  struct Parts {
    int64_t visits, count;
    LAMINA_DEVICE int64_t begin(int64_t part) const { return part * visits / count; }
    LAMINA_DEVICE int64_t part_of(int64_t visit) const {
      return ((visit + 1) * count - 1) / visits;
    }
  };

  LAMINA_DEVICE static float* slot(const Work& work, int64_t part, int64_t index) {
    return work.partials + (part * work.slots_per_part + index) * work.slot_floats;
  }

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

  // The slot of the merged result of the piece that begins a tile. Other pieces leave a result for each of their splits.
  LAMINA_DEVICE static float* merged_slot(const Work& work, int64_t part) {
    return slot(work, part, work.slots_per_part - 1);
  }

  // Merges the results of all parts that share the tile, if this block of threads is the last of them.
  LAMINA_DEVICE static bool merge_parts(const Work& work, State& state) {
    const Parts parts = parts_of(work);
    const int64_t begin = Shape::at(&Place::first), end = begin + Shape::at(&Place::visits);
    const int64_t first = parts.part_of(begin), last = parts.part_of(end - 1);
    if (!is_last(work.arrivals + first, last - first)) return false;
    Result::load(merged_slot(work, first), state);
#pragma unroll 1
    for (int64_t part = first + 1; part <= last; ++part) {
      const int64_t from = parts.begin(part), next = parts.begin(part + 1);
      const int64_t results = !work.has_splits() ? 1 : (next < end ? next : end) - from;
#pragma unroll 1
      for (int64_t i = 0; i < results; ++i)
        Result::template merge<false>(slot(work, part, i), state);
    }
    return true;
  }

  // Keeps the result of a split. After the last the state is the result of the piece, unless the piece leaves its splits to
  // others.
  LAMINA_DEVICE static void keep(const Work& work, int32_t split, State& state) {
    const int64_t part = dev::block_index().x;
    if (Shape::at(&Place::begin) > 0) return Result::store(state, slot(work, part, split));
    if (split > 0) Result::template merge<true>(merged_slot(work, part), state);
    if (Shape::at(&Place::split_end) < Shape::at(&Place::end_block) ||
        Shape::at(&Place::end) < Shape::at(&Place::visits))
      Result::store(state, merged_slot(work, part));
  }

  LAMINA_DEVICE static bool find_next_split(const Work& work) {
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

  // Whether the state is the result of the whole tile, for this block of threads to write.
  LAMINA_DEVICE static bool merge_if_shared(const Work& work, State& state) {
    const bool is_whole =
        Shape::at(&Place::begin) == 0 && Shape::at(&Place::end) == Shape::at(&Place::visits);
    return is_whole || merge_parts(work, state);
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

  LAMINA_DEVICE static Parts parts_of(const Work& work) {
    const int64_t visits = dev::load_global(&work.header->visits);
    return {visits, visits < work.parts ? visits : work.parts};
  }

  // The piece of the tile that begins with `visit` and does not pass visit `end`.
  LAMINA_DEVICE static Place place_of(const KernelArgs& args, int32_t index, int64_t visit,
                                      int64_t end) {
    const Work& work = args.work;
    const Tile tile = load_words(work.tile + index);
    Place at{};
    at.tile = tile;
    at.visits = visits_of(work, tile);
    const int64_t head = (visit - tile.visit) / at.visits;
    at.first = tile.visit + head * at.visits;
    at.begin = visit - at.first;
    at.end = end - at.first < at.visits ? end - at.first : at.visits;
    at.head = static_cast<int32_t>(head);
    at.next_tile = index + (at.end == at.visits && head == args.p.kv_heads - 1 ? 1 : 0);
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
