// pack_tree_mask / requests:   bit j of mask[i] = node j is node i or an ancestor of it: tree_mask.h
//
// Algorithm  a block for each request checks the parents; then a thread walks up from each of its nodes, once for each
//            word of the mask
// Budget     <= 64 regs; 0 spills
// Reference  tests/reference/sample.py
#include <algorithm>
#include <climits>

#include "block/reduce.cuh"
#include "device/device.h"
#include "kv/error_word.cuh"
#include "ops/sample/tree_mask.h"
#include "ops/sample/walk.h"

namespace lamina::sample {
namespace {

struct PackTree {
  struct Args {
    TreeMask p;
    kv::ErrorWord* error;
  };
  static constexpr const char* kName = "sample_tree_mask";
  static constexpr int kThreads = 64, kMinBlocks = 1, kWarps = kThreads / dev::kWarpLanes;
  static constexpr int kSmemBytes = kWarps * static_cast<int>(sizeof(int32_t));

  LAMINA_DEVICE static void run(const Args& args) {
    const TreeMask& p = args.p;
    for (int64_t r = dev::block_index().x; r < p.requests; r += dev::grid_size().x) {
      pack_request(args, r);
      dev::block_sync();  // all threads have read the shared memory
    }
  }

  LAMINA_DEVICE static void pack_request(const Args& args, int64_t r) {
    const TreeMask& p = args.p;
    const auto load = [](const auto* at) { return dev::load_global(at); };
    const Span span = span_of(p.cu_seqlens, r, p.rows, p.max_len, load);
    bool is_bad = span.flag == Flag::kOffsets;
    if (is_bad && dev::thread_index() == 0)
      kv::report(args.error, kv::ErrorOp::kPackTreeMask, kv::ErrorArgument::kCuSeqlensQ,
                 load(p.cu_seqlens + r + 1), r + 1);
    const int32_t* const parents = p.parents + span.begin;
    for (int32_t node = dev::thread_index(); node < span.count; node += kThreads) {
      const int32_t parent = load(parents + node);
      if (is_parent(parent, node)) continue;
      is_bad = true;
      kv::report(args.error, kv::ErrorOp::kPackTreeMask, kv::ErrorArgument::kParents, parent,
                 span.begin + node);
    }
    is_bad = any_of_block<kWarps>(is_bad, reinterpret_cast<int32_t*>(dev::dynamic_smem()));
    if (dev::thread_index() == 0) dev::store_global(p.len + r, is_bad ? 0 : span.count);
    const int64_t words = words_of(p.max_len);
    for (int32_t node = dev::thread_index(); node < span.count; node += kThreads) {
      int32_t depth = 0;
      for (int64_t word = 0; word < words; ++word) {
        int32_t bits = 0;
        depth = -1;
        for (int32_t at = is_bad ? -1 : node; at >= 0; at = load(parents + at)) {
          if (at / 32 == word) bits |= bit_of(at);
          ++depth;
        }
        dev::store_global(p.mask + (span.begin + node) * words + word, bits);
      }
      dev::store_global(p.depth + span.begin + node, std::max(depth, 0));
    }
  }
};

}  // namespace

Status run_cuda(const TreeMask& params, void* stream) {
  if (params.requests == 0) return Status::ok();
  PackTree::Args args{params, nullptr};
  if (Status status = kv::error_word(args.error); !status.is_ok()) return status;
  const int64_t blocks = std::min<int64_t>(params.requests, INT_MAX);
  return dev::launch<PackTree>({{static_cast<int>(blocks), 1, 1}, PackTree::kSmemBytes}, stream,
                               args);
}

}  // namespace lamina::sample
