// Checks the indices of a call, finds the columns that each token sees, and cuts the work into parts.
// Pure, host-only.
//
// A tile is a run of query rows of one request that share a KV head: row r is head r % group of token r / group.
// A visit is one chunk of keys for one tile and one KV head, the smallest piece of work. All visits stand in one line,
// by tile, head and chunk. Part i of n is the range [i * visits / n, (i + 1) * visits / n) of the line, so parts
// have equal numbers of visits, up to one, and at most two tiles of a part are shared with other parts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "ops/paged_attention/paged_attention.h"

namespace lamina::paged_attention {

// Kernels take up to this many keys in one step, always the same keys, whatever other tokens see.
inline constexpr int64_t kAlign = 32;

// Columns [low, high) are seen. Those from shared_end on belong to one token alone: tree nodes, and up to kAlign - 1
// slots before the tree.
struct Token {
  int64_t low = 0, high = 0, shared_end = 0;
  int64_t position = 0;
  int64_t nodes = 0;  // column prefix + r is node Plan::nodes[nodes + r]
  bool sees_nothing() const { return high <= low; }
};

struct Tile {
  int64_t request = 0;
  int64_t row = 0, rows = 0;  // of the request
  int64_t chunk = 0, chunks = 0;
  int64_t visit = 0;  // the first in line
};

struct Request {
  int64_t token = 0, tokens = 0, prefix = 0;  // prefix: slots before the tree, or all slots
};

struct Plan {
  std::vector<Request> requests;
  std::vector<Token> tokens;
  std::vector<int32_t> nodes;  // the nodes that each node sees, in order of columns
  std::vector<Tile> tiles;
  int64_t visits = 0, parts = 0;
  int64_t tile_rows = 0;       // the most that a tile has
  int64_t slots_per_part = 0;  // partial results that a part may leave for another part to merge

  int64_t begin(int64_t part) const { return part * visits / parts; }
  int64_t part_of(int64_t visit) const { return ((visit + 1) * parts - 1) / visits; }
  const Tile& tile_of(int64_t visit) const;
};

// The bits of the result depend neither on `l2_bytes` nor on `threads`.
Status plan(const Params& params, int64_t l2_bytes, int threads, Plan& plan);

}  // namespace lamina::paged_attention
