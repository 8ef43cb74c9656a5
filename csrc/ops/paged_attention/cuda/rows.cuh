// The queries of a tile, and the columns that each of its rows sees.
#pragma once

#include "block/row_copy.cuh"
#include "kv/error_word.cuh"
#include "ops/paged_attention/cuda/shape.cuh"
#include "ops/paged_attention/cuda/walk.cuh"

namespace lamina::paged_attention {

inline constexpr float kLog2E = 1.44269504f;

template <class Shape>
struct TileRows {
  // Starts to copy the queries into shared memory. Rows that do not exist, and elements past head_dim, become zeros.
  LAMINA_DEVICE static void load_queries(const KernelArgs& args, const Place& at) {
    constexpr int kChunks = Shape::kDim / 8, kAll = Shape::kRows * kChunks;
    const Params& p = args.p;
    const auto* const q = static_cast<const std::byte*>(p.q);
#pragma unroll 1
    for (int i = dev::thread_index(); i < kAll; i += Shape::kThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const int of_request = at.tile.row + row, token = of_request / args.group;
      const int64_t head = int64_t{at.head} * args.group + of_request % args.group;
      const int64_t offset =
          (at.tile.token + token) * p.q_token_stride + head * p.q_head_stride + chunk * 8;
      const bool is_there = row < at.rows && chunk * 8 < p.head_dim;
      std::byte* const to =
          Shape::smem(Shape::kQueriesAt + Shape::template half_chunk_at<Shape::kDim>(row, chunk));
      const std::byte* const from = is_there ? q + offset * 2 : q;
      if (args.q_copy_bytes == 16) {
        dev::cp_async<16>(to, from, is_there ? 16 : 0);
      } else {
        copy_unaligned(args.q_copy_bytes, to, from, q, is_there ? 16 : 0);
      }
    }
  }

  LAMINA_DEVICE static int32_t clamp(int64_t value) {
    return static_cast<int32_t>(value < INT32_MIN   ? INT32_MIN
                                : value > INT32_MAX ? INT32_MAX
                                                    : value);
  }

  LAMINA_DEVICE static RowInfo info_of(const KernelArgs& args, const Place& at, int row) {
    const Params& p = args.p;
    RowInfo info{0, 0, 0, 0, 0, -1, 0.0f};
    if (row >= at.rows) return info;
    const int32_t of_request = at.tile.row + row, token = of_request / args.group;
    const int32_t node = token - (at.tile.q_len - at.tile.tree_len);
    if (p.alibi_slopes != nullptr)
      info.slope =
          kLog2E * dev::load_global(p.alibi_slopes + at.tile.request * p.alibi_request_stride +
                                    int64_t{at.head} * args.group + of_request % args.group);
    if (node < 0) {
      const ColumnRange seen = plain_columns(p, at.tile.seq_len, at.tile.q_len, token);
      info.low = clamp(seen.low);
      info.high = clamp(seen.high);
      info.position = node;
      return info;
    }
    info.token = at.tile.token + token;
    if (args.depths != nullptr) info.position = depth(args, info.token);
    const int64_t left = near_window(p.window_left), right = near_window(p.window_right);
    info.node_low = left < 0 ? INT32_MIN : clamp(info.position - left);
    info.node_high = right < 0 ? INT32_MAX : clamp(info.position + right);
    const int64_t low = int64_t{at.prefix} + info.position - left;
    info.low = left < 0 || low < 0 ? 0 : clamp(low);
    info.high = args.work.has_splits() ? at.prefix / kColumns * kColumns : at.prefix;
    return info;
  }

  // The position of a node, which is the token `token` of the call.
  LAMINA_DEVICE static int32_t depth(const KernelArgs& args, int64_t token) {
    const int32_t depth = dev::load_global(args.depths + token);
    if (depth >= 0) return depth;
    kv::report(args.error, kv::ErrorOp::kPagedAttention, kv::ErrorArgument::kTreeDepth, depth,
               token);
    return 0;
  }

  // In shared memory one member of all rows lies after the other.
  LAMINA_DEVICE static int32_t* members(int member) {
    return reinterpret_cast<int32_t*>(Shape::smem(Shape::kRowsAt)) + member * Shape::kRows;
  }
  LAMINA_DEVICE static void load_infos(const KernelArgs& args, const Place& at) {
    struct Members {
      int32_t value[kRowMembers];
    };
    for (int row = dev::thread_index(); row < Shape::kRows; row += Shape::kThreads) {
      const auto members_of_row = std::bit_cast<Members>(info_of(args, at, row));
#pragma unroll
      for (int i = 0; i < kRowMembers; ++i)
        dev::store_shared(members(i) + row, members_of_row.value[i]);
    }
  }
  LAMINA_DEVICE static int32_t info(int row, RowMember member) {
    return dev::load_shared(members(static_cast<int>(member)) + row);
  }

  // Bits 0 to n - 1.
  LAMINA_DEVICE static uint64_t low_bits(int64_t n) {
    return n <= 0 ? 0 : n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
  }

  // Bit i: the node with column `first` + i is in the mask of the token.
  LAMINA_DEVICE static uint64_t mask_bits(const KernelArgs& args, int32_t token, int32_t first) {
    const int32_t node = first - Shape::at(&Place::prefix), word = node >> 5;  // rounds down
    const int32_t nodes = Shape::at(&Tile::tree_len);
    uint32_t words[3];
#pragma unroll
    for (int w = 0; w < 3; ++w) {
      const bool is_there = word + w >= 0 && (word + w) * 32 < nodes;
      words[w] = is_there ? static_cast<uint32_t>(dev::load_global(
                                args.p.tree_mask + token * args.p.tree_mask_stride + word + w))
                          : 0;
    }
    const uint64_t low = static_cast<uint64_t>(words[1]) << 32 | words[0];
    const int shift = node & 31;
    const uint64_t bits =
        shift == 0 ? low : low >> shift | static_cast<uint64_t>(words[2]) << (64 - shift);
    return bits & low_bits(int64_t{nodes} - node);
  }

  // Bit i: the row of the tile sees column i of the block where the walk is.
  LAMINA_DEVICE static uint64_t seen(const KernelArgs& args, int row, const Walk<Shape>& walk) {
    const int32_t first = walk.first_column(), token = info(row, RowMember::kToken);
    const int32_t low = info(row, RowMember::kLow);
    uint64_t bits, nodes;  // columns that are slots, and those that are nodes
    if (walk.token() >= 0) {
      if (token != walk.token()) return 0;
      const int64_t prefix = Shape::at(&Place::prefix);
      const int64_t end = prefix + dev::load_global(args.work.node_counts + token);
      bits = low_bits(prefix - first) & ~low_bits(int64_t{low} - first);
      nodes = low_bits(end - first) & ~low_bits(prefix - first);
    } else {
      bits =
          low_bits(int64_t{info(row, RowMember::kHigh)} - first) & ~low_bits(int64_t{low} - first);
      if (token < 0 || args.work.has_splits() || first + kColumns <= Shape::at(&Place::prefix))
        return bits;
      nodes = mask_bits(args, token, first);
    }
    if (args.p.window_left >= 0 || args.p.window_right >= 0) {
      const int32_t node_low = info(row, RowMember::kNodeLow);
      const int32_t node_high = info(row, RowMember::kNodeHigh);
#pragma unroll 1
      for (int i = 0; i < kColumns; ++i) {
        if (!(nodes >> i & 1)) continue;
        const int32_t position = dev::load_shared(Shape::positions(walk.index()) + i);
        if (position < node_low || position > node_high) nodes &= ~(uint64_t{1} << i);
      }
    }
    return bits | nodes;
  }

  // Whether the row of the tile sees any column. Slow; for rows whose weights are all 0.
  LAMINA_DEVICE static bool sees_any(const KernelArgs& args, int row) {
    const int32_t low = info(row, RowMember::kLow), token = info(row, RowMember::kToken);
    if (token < 0) return low < info(row, RowMember::kHigh);
    const int32_t prefix = Shape::at(&Place::prefix), nodes = Shape::at(&Tile::tree_len);
    if (low < prefix) return true;
    const int32_t first_node = Shape::at(&Tile::token) + Shape::at(&Tile::q_len) - nodes;
#pragma unroll 1
    for (int32_t node = 0; node < nodes; ++node) {
      if (!(mask_bits(args, token, prefix + node) & 1)) continue;
      if (args.depths == nullptr) return true;
      const int32_t position = depth(args, first_node + node);
      if (position >= info(row, RowMember::kNodeLow) && position <= info(row, RowMember::kNodeHigh))
        return true;
    }
    return false;
  }
};

}  // namespace lamina::paged_attention
