// paged_attention / tree:   depth[i] = other nodes that node i sees; node[i][r] = its r-th node, by depth and then by slot
//
// Algorithm  depths: a thread for each token counts bits of its row of the mask. Order: a warp for each token ranks the nodes
//            that the token sees against each other, 32 at a time; their depths go from lane to lane
// Budget     <= 64 regs; 0 spills
// Reference  Planner::find_nodes in plan.cc
#include <bit>

#include "device/device.h"
#include "ops/paged_attention/cuda/plan.h"

namespace lamina::paged_attention {
namespace {

struct TreeArgs {
  Params p;
  Work work;
  const int32_t* depths;  // given or found
};

// A token that is a node: its tree, and its number in it.
struct NodeOf {
  int64_t first_token = 0;  // of the tree
  int32_t nodes = 0, node = -1;
};

LAMINA_DEVICE NodeOf node_of(const Work& work, int64_t token) {
  int64_t low = 0, high = work.spans;  // the last span that begins at or before the token
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (dev::load_global(&work.span[middle].token) <= token ? low : high) = middle;
  }
  const Span* const span = work.span + low;
  const int64_t end = int64_t{dev::load_global(&span->token)} + dev::load_global(&span->q_len);
  const int32_t nodes = dev::load_global(&span->tree_len);
  if (token >= end || token < end - nodes) return {};
  return {end - nodes, nodes, static_cast<int32_t>(token - (end - nodes))};
}

struct Mask {
  const int32_t* row;
  LAMINA_DEVICE Mask(const Params& p, int64_t token)
      : row(p.tree_mask + token * p.tree_mask_stride) {}
  // Bit i: the token sees node `first` + i. first: a multiple of 32 below `nodes`.
  LAMINA_DEVICE uint32_t word(int32_t first, int32_t nodes) const {
    const auto bits = static_cast<uint32_t>(dev::load_global(row + first / 32));
    return nodes - first >= 32 ? bits : bits & ((1u << (nodes - first)) - 1);
  }
};

struct FindDepths {
  using Args = TreeArgs;
  static constexpr const char* kName = "paged_attention_depths";
  static constexpr int kThreads = 128, kMinBlocks = 1;

  LAMINA_DEVICE static void run(const Args& args) {
    dev::launch_dependents();
    const int64_t token = int64_t{dev::block_index().x} * kThreads + dev::thread_index();
    if (token >= args.p.tokens) return;
    const NodeOf at = node_of(args.work, token);
    if (at.node < 0) return;
    const Mask mask(args.p, token);
    int32_t depth = 0;
    for (int32_t first = 0; first < at.nodes; first += 32) {
      uint32_t word = mask.word(first, at.nodes);
      if (at.node / 32 == first / 32) word &= ~(1u << at.node % 32);
      depth += std::popcount(word);
    }
    dev::store_global(args.work.depths + token, depth);
  }
};

struct OrderNodes {
  using Args = TreeArgs;
  static constexpr const char* kName = "paged_attention_nodes";
  static constexpr int kThreads = 128, kMinBlocks = 1, kWarps = kThreads / dev::kWarpLanes;

  LAMINA_DEVICE static void run(const Args& args) {
    dev::launch_dependents();
    const int64_t token = int64_t{dev::block_index().x} * kWarps + dev::warp();
    if (token >= args.p.tokens) return;
    const NodeOf at = node_of(args.work, token);
    const Mask mask(args.p, token);
    const int32_t* const depths = args.depths + at.first_token;
    // The nodes that the token sees among 32, and the depth of that of this lane.
    struct Seen {
      uint32_t word;
      int32_t depth;
    };
    const auto seen = [&](int32_t first) {
      const uint32_t word = mask.word(first, at.nodes);
      return Seen{word,
                  word >> dev::lane() & 1 ? dev::load_global(depths + first + dev::lane()) : 0};
    };
    int32_t count = 0;
#pragma unroll 1
    for (int32_t base = 0; base < at.nodes; base += dev::kWarpLanes) {
      const Seen own = seen(base);
      const int32_t node = base + dev::lane();
      count += std::popcount(own.word);
      int32_t rank = 0;
#pragma unroll 1
      for (int32_t first = 0; own.word != 0 && first < at.nodes; first += dev::kWarpLanes) {
        const Seen others = seen(first);
#pragma unroll 1
        for (uint32_t left = others.word; left != 0; left &= left - 1) {
          const int lane = std::countr_zero(left);
          const auto its =
              static_cast<int32_t>(dev::shuffle(static_cast<uint32_t>(others.depth), lane));
          rank += its < own.depth || (its == own.depth && first + lane < node);
        }
      }
      if (own.word >> dev::lane() & 1)
        dev::store_global(args.work.nodes + token * args.work.max_nodes + rank, node);
    }
    if (dev::lane() == 0) dev::store_global(args.work.node_counts + token, count);
  }
};

template <class Kernel>
Status launch(const TreeArgs& args, int64_t blocks, void* stream) {
  return dev::launch<Kernel>({{static_cast<int>(blocks), 1, 1}, 0}, stream, args);
}

}  // namespace

Status launch_depths(const Params& params, const Work& work, void* stream) {
  return launch<FindDepths>({params, work, nullptr}, ceil_div(params.tokens, FindDepths::kThreads),
                            stream);
}

Status launch_nodes(const Params& params, const Work& work, const int32_t* depths, void* stream) {
  return launch<OrderNodes>({params, work, depths}, ceil_div(params.tokens, OrderNodes::kWarps),
                            stream);
}

}  // namespace lamina::paged_attention
