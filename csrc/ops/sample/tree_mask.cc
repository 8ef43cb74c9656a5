// pack_tree_mask on a CPU, for every ISA: it reads a few numbers for each node.
#include "ops/sample/tree_mask.h"

#include <algorithm>

#include "kv/block_table.h"

namespace lamina::sample {
namespace {

constexpr const char* kOp = "pack_tree_mask";

Status check(const TreeMask& p) {
  if (Status status = kv::check_offsets(kOp, "cu_seqlens_q", p.cu_seqlens, p.requests, p.rows);
      !status.is_ok())
    return status;
  for (int64_t r = 0; r < p.requests; ++r) {
    const int64_t begin = p.cu_seqlens[r], end = p.cu_seqlens[r + 1];
    if (end - begin > p.max_len)
      return Status::error(kOp, ": max_seqlen_q = ", p.max_len, " must be at least the ",
                           end - begin, " nodes of request ", r);
    for (int64_t i = begin; i < end; ++i)
      if (!is_parent(p.parents[i], i - begin))
        return Status::error(kOp, ": parents[", i, "] = ", p.parents[i], " of node ", i - begin,
                             " of request ", r, " must be -1 or a node before it");
  }
  return Status::ok();
}

}  // namespace

Status run(const TreeMask& params) {
  const TreeMask& p = params;
  if (Status status = check(p); !status.is_ok()) return status;
  const int64_t words = words_of(p.max_len);
  std::fill_n(p.mask, p.rows * words, 0);
  for (int64_t r = 0; r < p.requests; ++r) {
    const int64_t begin = p.cu_seqlens[r], end = p.cu_seqlens[r + 1];
    p.len[r] = static_cast<int32_t>(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      const int32_t parent = p.parents[i];
      int32_t* const row = p.mask + i * words;
      if (parent >= 0) std::copy_n(p.mask + (begin + parent) * words, words, row);
      row[(i - begin) / 32] |= bit_of(i - begin);
      p.depth[i] = parent < 0 ? 0 : p.depth[begin + parent] + 1;
    }
  }
  return Status::ok();
}

}  // namespace lamina::sample
