// The work of a call on a GPU. One kernel writes this plan and the next reads it: only the device knows the lengths.
//
// A tile is up to kRows query rows of one request and KV head: row r is head r % group of token r / group. A visit is the
// smallest piece of work: `visit_blocks` blocks of kColumns columns for one tile and one KV head. All visits stand in one
// line, by head, tile and block. Parts are ranges of the line of equal lengths, up to one visit. At most two pieces of a part share their tile and head with other parts. Block b of threads does the parts b,
// b + blocks, ...: with several parts for each block, all blocks read the keys of the same heads at a time, from L2.
#pragma once

#include <algorithm>
#include <climits>
#include <cstdint>

#include "base/int_math.h"
#include "ops/paged_attention/paged_attention.h"

namespace lamina::paged_attention {

inline constexpr int kColumns = 64;  // of a block of columns: they share a maximum
// With batch_invariant the columns of a split have a softmax of their own, and splits are merged in a fixed tree
// (split_tree.cuh).
inline constexpr int kSplitBlocks = 16;

// The tokens of one request. Tokens that no request owns, and those of a request with a bad length, have seq_len = 0.
struct Span {
  int32_t request, token, q_len, seq_len, tree_len, first_tile;
  int32_t unused[2];
};

struct Tile {
  int32_t request, token, q_len, seq_len, tree_len;  // of the span
  int32_t row;                                       // the first, of the rows of the request
  int32_t first_block, blocks;                       // of columns
  int64_t visit;                                     // the first in line, among those of a head
  int64_t unused;
};

struct Header {
  int64_t head_visits;  // of all tiles, for one head
  int64_t part_visits;  // of a part; the first `longer` parts have one more
  int32_t parts, longer;
  int32_t tiles, unused;
};

// Sizes that the host knows without the lengths, and addresses in the workspace.
struct Work {
  int32_t blocks = 0;  // of the launch
  int32_t parts = 0;   // at most
  int32_t visit_blocks = 1;
  int32_t least_visits = 4;                   // of a part
  int32_t split_blocks = INT_MAX;             // blocks that share a softmax
  int32_t slots_per_part = 2;                 // partial results that a part may leave
  int32_t piece_levels = 0, tile_levels = 0;  // of the trees of splits
  int64_t slot_floats = 0;
  int64_t spans = 0, max_tiles = 0;
  Header* header = nullptr;
  Span* span = nullptr;
  Tile* tile = nullptr;
  int32_t* arrivals =
      nullptr;  // a counter for each part, for the tile that begins in it and ends in another
  float* partials = nullptr;
  // Trees, where positions or paths matter: of each token that is a node its depth, and the nodes that it sees in the
  // order of its columns.
  int32_t* depths = nullptr;       // [tokens]
  int32_t* node_counts = nullptr;  // [tokens]
  int32_t* nodes = nullptr;        // [tokens, max_nodes]
  int64_t tokens = 0, depth_count = 0, max_nodes = 0;

  constexpr bool has_splits() const { return split_blocks != INT_MAX; }
};

// The visits of a tile for one KV head. A tile that sees nothing has one, which writes its rows.
constexpr int64_t visits_of(const Work& work, const Tile& tile) {
  return std::max<int64_t>(1, ceil_div(tile.blocks, work.visit_blocks));
}

// Columns from low to before high.
struct ColumnRange {
  int64_t low = 0, high = 0;
  constexpr bool is_empty() const { return high <= low; }
};

// The columns that some row of a tile sees lie in `any`; all its rows see those in `all`.
struct TileColumns {
  ColumnRange any, all;
};

// A window of 2^33 or more limits nothing. It counts as 2^33, so that sums with positions fit int64.
constexpr int64_t near_window(int64_t window) {
  constexpr int64_t kFar = int64_t{1} << 33;
  return window < kFar ? window : kFar;
}

// The columns that plain token `token` of a request sees.
constexpr ColumnRange plain_columns(const Params& p, int64_t seq_len, int64_t q_len,
                                    int64_t token) {
  const int64_t position = seq_len - q_len + token;
  const int64_t left = near_window(p.window_left), right = near_window(p.window_right);
  ColumnRange seen{0, p.causal ? std::min(seq_len, position + 1) : seq_len};
  if (right >= 0) seen.high = std::min(seen.high, position + 1 + right);
  if (left >= 0) seen.low = std::max<int64_t>(0, position - left);
  seen.high = std::max(seen.high, seen.low);
  return seen;
}

// tokens: `first` to `last` of the request. Nodes of a tree may see any column from a window before the tree on.
constexpr TileColumns tile_columns(const Params& p, const Tile& tile, int64_t first, int64_t last) {
  const int64_t plain = int64_t{tile.q_len} - tile.tree_len;  // tokens before the tree
  const int64_t prefix = int64_t{tile.seq_len} - tile.tree_len;
  TileColumns columns{{INT64_MAX, 0}, {0, INT64_MAX}};
  if (first < plain) {
    const ColumnRange begin = plain_columns(p, tile.seq_len, tile.q_len, first);
    const ColumnRange end = plain_columns(p, tile.seq_len, tile.q_len, std::min(last, plain - 1));
    columns = {{begin.low, end.high}, {end.low, begin.high}};
  }
  if (last >= plain) {
    const int64_t left = p.window_left;
    columns.any.low = std::min(columns.any.low, left < 0 ? 0 : std::max<int64_t>(0, prefix - left));
    columns.any.high = std::max<int64_t>(columns.any.high, tile.seq_len);
    columns.all.low = std::max(columns.all.low, left < 0 ? 0 : prefix);
    columns.all.high = std::min(columns.all.high, prefix);
  }
  return columns;
}

}  // namespace lamina::paged_attention
