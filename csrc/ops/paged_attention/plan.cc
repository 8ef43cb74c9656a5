#include "ops/paged_attention/plan.h"

#include <algorithm>
#include <bit>

#include "base/int_math.h"

namespace lamina::paged_attention {
namespace {

// More parts than threads, so that a thread that is slower or starts late leaves work to the others.
constexpr int64_t kPartsPerThread = 8;

// The scores of a chunk take 2 KiB a row and should stay in L2. More rows read the cache less often.
constexpr int64_t kLargeL2 = 1024 * 1024;

constexpr const char* kOp = "paged_attention: ";

// The tree of one request, or none.
struct Tree {
  int64_t nodes = 0, first_token = 0;
};

class Planner {
 public:
  Planner(const Params& params, int64_t l2_bytes, Plan& plan)
      : p_(params),
        plan_(plan),
        most_rows_(l2_bytes >= kLargeL2 ? 128 : 64),
        left_(std::min(params.window_left, kFar)),
        right_(std::min(params.window_right, kFar)) {}

  Status add_requests() {
    if (Status status = kv::check_offsets("paged_attention", "cu_seqlens_q", p_.cu_seqlens_q,
                                          p_.requests, p_.tokens);
        !status.is_ok())
      return status;
    plan_.requests.resize(static_cast<size_t>(p_.requests));
    plan_.tokens.resize(static_cast<size_t>(p_.tokens));
    for (int64_t b = 0; b < p_.requests; ++b)
      if (Status status = add_request(b); !status.is_ok()) return status;
    return Status::ok();
  }

 private:
  Status add_request(int64_t b) {
    const int64_t first = p_.cu_seqlens_q[b], length = int64_t{p_.cu_seqlens_q[b + 1]} - first;
    const int64_t seq_len = p_.seq_lens[b];
    if (length > p_.max_seqlen_q)
      return Status::error(kOp, "max_seqlen_q = ", p_.max_seqlen_q, "; request ", b, " has ", length,
                           " tokens");
    if (seq_len < 0 || ceil_div(seq_len, p_.k.page) > p_.block_table.max_blocks)
      return Status::error(kOp, "seq_lens[", b, "] = ", seq_len, "; must be between 0 and ",
                           p_.block_table.max_blocks, " pages of ", p_.k.page);
    Tree tree;
    tree.nodes = p_.tree_len != nullptr ? p_.tree_len[b] : 0;
    if (tree.nodes < 0 || tree.nodes > std::min(length, seq_len) || tree.nodes > 32 * p_.tree_words)
      return Status::error(kOp, "tree_len[", b, "] = ", tree.nodes, "; must be between 0 and ",
                           std::min({length, seq_len, 32 * p_.tree_words}),
                           ": the tokens of the request, its length, and the bits of tree_mask");
    tree.first_token = first + length - tree.nodes;
    plan_.requests[static_cast<size_t>(b)] = {first, length, seq_len - tree.nodes};
    if (Status status = find_columns(b, seq_len, tree); !status.is_ok()) return status;
    if (Status status = check_pages(b); !status.is_ok()) return status;
    add_tiles(b);
    return Status::ok();
  }

  Status find_columns(int64_t b, int64_t seq_len, const Tree& tree) {
    const Request& request = plan_.requests[static_cast<size_t>(b)];
    if (tree.nodes > 0)
      if (Status status = find_depths(tree); !status.is_ok()) return status;
    for (int64_t t = request.token; t < request.token + request.tokens; ++t) {
      Token& token = plan_.tokens[static_cast<size_t>(t)];
      if (t >= tree.first_token && tree.nodes > 0) {
        find_nodes(t, request.prefix, tree, token);
        continue;
      }
      token.position = seq_len - request.tokens + (t - request.token);
      token.high = p_.causal ? std::min(seq_len, token.position + 1) : seq_len;
      if (right_ >= 0) token.high = std::min(token.high, token.position + 1 + right_);
      if (left_ >= 0) token.low = std::max<int64_t>(0, token.position - left_);
      token.shared_end = token.high = std::max(token.high, token.low);
    }
    return Status::ok();
  }

  bool sees(int64_t token, int64_t node) const {
    const auto word =
        static_cast<uint32_t>(p_.tree_mask[token * p_.tree_mask_stride + node / 32]);
    return word >> node % 32 & 1u;
  }

  Status find_depths(const Tree& tree) {
    depths_.resize(static_cast<size_t>(tree.nodes));
    for (int64_t i = 0; i < tree.nodes; ++i) {
      const int64_t t = tree.first_token + i;
      int32_t& depth = depths_[static_cast<size_t>(i)];
      if (p_.tree_depth != nullptr) {
        depth = p_.tree_depth[t];
        if (depth < 0)
          return Status::error(kOp, "tree_depth[", t, "] = ", depth, "; must not be negative");
        continue;
      }
      depth = 0;
      for (int64_t other = 0; other < tree.nodes; ++other) depth += other != i && sees(t, other);
    }
    return Status::ok();
  }

  void find_nodes(int64_t t, int64_t prefix, const Tree& tree, Token& token) {
    token.nodes = static_cast<int64_t>(plan_.nodes.size());
    for (int64_t node = 0; node < tree.nodes; ++node)
      if (sees(t, node)) plan_.nodes.push_back(static_cast<int32_t>(node));
    const auto depth = [&](int32_t node) { return depths_[static_cast<size_t>(node)]; };
    const auto begin = plan_.nodes.begin() + token.nodes, end = plan_.nodes.end();
    std::stable_sort(begin, end, [&](int32_t a, int32_t b) { return depth(a) < depth(b); });
    token.position = prefix + depth(static_cast<int32_t>(t - tree.first_token));
    // Positions ascend with columns, so a window cuts columns off at both ends.
    const auto columns_before = [&](int64_t position) {
      if (position <= prefix) return std::max<int64_t>(position, 0);
      const auto at = std::partition_point(
          begin, end, [&](int32_t node) { return prefix + depth(node) < position; });
      return prefix + (at - begin);
    };
    token.high = prefix + (end - begin);
    if (right_ >= 0) token.high = std::min(token.high, columns_before(token.position + right_ + 1));
    if (left_ >= 0) token.low = columns_before(token.position - left_);
    token.high = std::max(token.high, token.low);
    token.shared_end = std::min(token.high, prefix / kAlign * kAlign);
  }

  // Only pages that a token can see are looked at; a sliding window may have freed others.
  Status check_pages(int64_t b) {
    const Request& request = plan_.requests[static_cast<size_t>(b)];
    int64_t low = INT64_MAX, high = 0;
    for (int64_t t = request.token; t < request.token + request.tokens; ++t) {
      const Token& token = plan_.tokens[static_cast<size_t>(t)];
      if (token.sees_nothing()) continue;
      low = std::min(low, token.low);
      high = std::max(high, token.shared_end < token.high ? int64_t{p_.seq_lens[b]} : token.high);
    }
    if (high == 0) return Status::ok();
    return kv::check_slots("paged_attention", p_.block_table, b, low, high, p_.k, "seq_lens");
  }

  void add_tiles(int64_t b) {
    const Request& request = plan_.requests[static_cast<size_t>(b)];
    const int64_t group = p_.heads / p_.kv_heads, rows = request.tokens * group;
    // Whole tokens where a tile holds one, so that a tile has few different ranges of columns.
    const int64_t most = group > most_rows_ ? most_rows_ : most_rows_ / group * group;
    for (int64_t row = 0; row < rows; row += most) {
      Tile tile{b, row, std::min(most, rows - row), 0, 0, plan_.visits};
      int64_t low = INT64_MAX, high = 0;
      for (int64_t i = row / group; i <= (row + tile.rows - 1) / group; ++i) {
        const Token& token = plan_.tokens[static_cast<size_t>(request.token + i)];
        if (token.sees_nothing()) continue;
        low = std::min(low, token.low);
        high = std::max(high, token.high);
      }
      if (high > 0) tile.chunk = low / kChunk;
      // Rows that see nothing are written too, by one visit.
      tile.chunks = high > 0 ? ceil_div(high, kChunk) - tile.chunk : 1;
      plan_.visits += tile.chunks * p_.kv_heads;
      plan_.tile_rows = std::max(plan_.tile_rows, tile.rows);
      plan_.tiles.push_back(tile);
    }
  }

  static constexpr int64_t kFar = int64_t{1} << 33;  // more than positions differ, so that sums do not overflow
  const Params& p_;
  Plan& plan_;
  const int64_t most_rows_, left_, right_;
  std::vector<int32_t> depths_;
};

}  // namespace

const Tile& Plan::tile_of(int64_t visit) const {
  const auto after = std::partition_point(tiles.begin(), tiles.end(),
                                          [&](const Tile& tile) { return tile.visit <= visit; });
  return *(after - 1);
}

Status plan(const Params& params, int64_t l2_bytes, int threads, Plan& plan) {
  if (Status status = Planner(params, l2_bytes, plan).add_requests(); !status.is_ok()) return status;
  plan.parts = std::min<int64_t>(plan.visits, threads == 1 ? 1 : threads * kPartsPerThread);
  if (plan.visits == 0) return Status::ok();
  int64_t most_chunks = 0;
  for (const Tile& tile : plan.tiles) most_chunks = std::max(most_chunks, tile.chunks);
  plan.slots_per_part = std::min(ceil_div(plan.visits, plan.parts), most_chunks) + 1;
  return Status::ok();
}

}  // namespace lamina::paged_attention
