// The results of splits of a tile, and the order in which they are merged.
//
// Split s of a request begins at column s * split_blocks * kColumns. Splits are the leaves of a binary tree, whose node `index`
// at `level` holds splits index * 2^level to (index + 1) * 2^level - 1. A node is the merged result of its halves, or of the
// one half that the tile has. So the bits of a row depend neither on the place where the work is cut nor on other rows,
// which only add results without weights, and a piece keeps at most two nodes of a level, however many splits it has.
#pragma once

#include <bit>

#include "ops/paged_attention/cuda/results.cuh"

namespace lamina::paged_attention {

// The parts of the line of visits, from the header in shared memory.
template <class Shape>
struct Line {
  // A barrier must follow.
  LAMINA_DEVICE static void load(const Work& work) {
    if (dev::thread_index() == 0) store_shared_words(Shape::header(), load_words(work.header));
  }
  LAMINA_DEVICE static int32_t parts() { return Shape::at(&Header::parts); }
  LAMINA_DEVICE static int64_t begin(int32_t part) {
    const int32_t longer = Shape::at(&Header::longer);
    return part * Shape::at(&Header::part_visits) + (part < longer ? part : longer);
  }
  LAMINA_DEVICE static int32_t part_of(int64_t visit) {
    const int64_t visits = Shape::at(&Header::part_visits), longer = Shape::at(&Header::longer);
    const int64_t rest = visit - longer * (visits + 1);
    return static_cast<int32_t>(rest < 0 ? visit / (visits + 1) : longer + rest / visits);
  }
};

LAMINA_DEVICE float* partial_slot(const Work& work, int64_t part, int64_t index) {
  return work.partials + (part * work.slots_per_part + index) * work.slot_floats;
}

template <class Shape>
struct SplitTree {
  using State = typename Shape::State;
  using Result = Results<Shape>;

  struct Node {
    int32_t level, index;
    LAMINA_DEVICE bool is_right() const { return index & 1; }
    LAMINA_DEVICE int32_t begin() const { return index << level; }
    LAMINA_DEVICE void climb() {
      ++level;
      index >>= 1;
    }
  };

  // The slots of a part: of each area two for each level of a piece, then one for each level of a tile.
  LAMINA_DEVICE static float* slot(const Work& work, int64_t part, int area, Node node) {
    return partial_slot(work, part,
                        2 * (area * work.piece_levels + node.level) + (node.is_right() ? 1 : 0));
  }
  LAMINA_DEVICE static float* stacked(const Work& work, int32_t level) {
    return partial_slot(work, Shape::at(&Place::part), 4 * work.piece_levels + level);
  }

  // The first split of the tile.
  LAMINA_DEVICE static int32_t first_split(const Work& work) {
    return Shape::at(&Tile::first_block) / work.split_blocks;
  }

  // Keeps the result of the split at hand in its node: merges the node with those to its left that the piece has.
  LAMINA_DEVICE static void keep(const Work& work, int64_t part, int area, State& state) {
    const int32_t begin =
        first_split(work) + static_cast<int32_t>(Shape::at(&Place::begin));  // of the piece
    Node node{0, Shape::at(&Place::split_begin) / work.split_blocks};
#pragma unroll 1
    for (; node.is_right() && Node{node.level, node.index - 1}.begin() >= begin; node.climb())
      Result::template merge<true>(slot(work, part, area, {node.level, node.index - 1}), state);
    Result::store(state, slot(work, part, area, node));
  }

  // state = the result of the tile, from the nodes of parts `first` to `last`.
  LAMINA_DEVICE static void merge(const Work& work, int32_t first, int32_t last, State& state) {
    const int64_t tile_begin = Shape::at(&Place::first), tile_visits = Shape::at(&Place::visits);
    const int32_t tile_split = first_split(work);
    Node top{-1, 0};  // whose result the state is; none yet
#pragma unroll 1
    for (int32_t part = first; part <= last; ++part) {
      const int64_t from = Line<Shape>::begin(part) - tile_begin,
                    to = Line<Shape>::begin(part + 1) - tile_begin;
      int32_t at = tile_split + static_cast<int32_t>(from > 0 ? from : 0);
      const int32_t end = tile_split + static_cast<int32_t>(to < tile_visits ? to : tile_visits);
#pragma unroll 1
      while (at < end) {  // the largest nodes of the piece, in order
        const int largest = 31 - std::countl_zero(static_cast<uint32_t>(end - at));
        const int aligned = at == 0 ? 31 : std::countr_zero(static_cast<uint32_t>(at));
        const Node node{aligned < largest ? aligned : largest, 0};
        at = add({node.level, at >> node.level}, work, part, from <= 0 ? 1 : 0, tile_split, top,
                 state);
      }
    }
#pragma unroll 1
    for (int32_t level = top.level + 1; level < work.tile_levels; ++level)
      if (top.begin() >> level & 1 && top.begin() >> level << level > tile_split)
        Result::template merge<true>(stacked(work, level), state);
  }

 private:
  // Adds a node to the right of `top`; returns the split behind the node.
  LAMINA_DEVICE static int32_t add(Node node, const Work& work, int64_t part, int area,
                                   int32_t tile_split, Node& top, State& state) {
    const int32_t end = node.begin() + (1 << node.level);
    float* const from = slot(work, part, area, node);
    if (top.level == node.level && top.index == node.index - 1 && node.is_right()) {
      Result::template merge<false>(from, state);
      node.climb();
    } else {
      if (top.level >= 0) Result::store(state, stacked(work, top.level));
      Result::load(from, state);
    }
#pragma unroll 1
    for (; node.is_right(); node.climb())
      if (node.begin() > tile_split) Result::template merge<true>(stacked(work, node.level), state);
    top = node;
    return end;
  }
};

}  // namespace lamina::paged_attention
