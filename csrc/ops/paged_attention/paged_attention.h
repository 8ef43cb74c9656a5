// paged_attention:   out[t,h] = sum_j w[j] v[j] / (sum_j w[j] + exp(sink[h])),   w[j] = exp(s[j]),
//                    s[j] = cap(scale * dot(q[t,h], k[j])) - slope[h] * |position(t) - position(j)|
//
// over the keys j that token t sees; h / group is the KV head of head h. cap(x) = softcap * tanh(x / softcap), or x
// where softcap is 0. lse[h,t] = log(sum_j w[j]), without the sink. A token that sees no key has out = 0, lse = -inf.
//
// Positions  Slot j of a request is its key number j. Token i of the q_len tokens of a request has position seq_len -
//            q_len + i, and a key has the position of its slot. With a tree, the last tree_len tokens of the request
//            are its nodes, in slots prefix = seq_len - tree_len and on; node i has position prefix + depth[i].
// Sees       all keys at slots < seq_len. A token that is no node, if causal: those with position(j) <= position(t). A node:
//            the slots before prefix, and the nodes whose bits are set in its mask. With a window in addition:
//            position(t) - left <= position(j) <= position(t) + right.
// Order      A key has a column: its slot or, for a node seen by a node, prefix + its rank among the nodes seen, by depth
//            and then by slot. Dot products sum head_dim in order. The columns of a chunk of 512, counted from column
//            0, share one maximum, and their products with v are summed in order of columns; chunks are merged in
//            order. Neither threads, pages nor other rows change a bit, and a node has the bits that its path has as a
//            plain sequence. On a GPU: cuda/sm80.cuh; there this holds with batch_invariant.
// Arithmetic f32 with fused multiply-adds. Where the processor has them, bf16 dot products for bf16 queries and caches, with
//            weights rounded to bf16, and integer ones for int8 caches, with queries and weights of 16 bits. The
//            dtypes and the processor choose, never the number of rows. A weight below 2^-125 of the largest of its
//            chunk is 0. On a GPU f16 or bf16 products with f32 sums, and weights rounded to 16 bits.
// Reference  tests/reference/paged_attention.py
#pragma once

#include <cstdint>
#include <string>

#include "base/broadcast.h"
#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"
#include "kv/block_table.h"
#include "kv/cache.h"

namespace lamina::paged_attention {

inline constexpr int64_t kChunk = 512;  // columns that share a maximum
inline constexpr int64_t kMaxGroup = 128;

struct Params {
  int64_t tokens = 0, heads = 0, kv_heads = 0, head_dim = 0, v_head_dim = 0, requests = 0;
  const void* q = nullptr;  // [tokens, heads, head_dim], unit stride in head_dim
  DType q_dtype = DType::kF32;
  int64_t q_token_stride = 0, q_head_stride = 0;
  kv::Cache k, v;
  kv::Scales k_scale, v_scale;
  kv::BlockTable block_table;
  const int32_t* seq_lens = nullptr;      // [requests]
  const int32_t* cu_seqlens_q = nullptr;  // [requests + 1]
  int64_t max_seqlen_q = 0;
  float scale = 1.0f;
  bool causal = true;
  int64_t window_left = -1, window_right = -1;  // -1: no limit
  float softcap = 0.0f;                         // 0: none
  const float* alibi_slopes = nullptr;          // [heads] or [requests, heads]
  int64_t alibi_request_stride = 0;
  const float* sinks = nullptr;        // [heads]
  const int32_t* tree_mask = nullptr;  // [tokens, tree_words]: bit i % 32 of word i / 32 is node i
  int64_t tree_mask_stride = 0, tree_words = 0;
  const int32_t* tree_len = nullptr;  // [requests]; 0: no tree
  const int32_t* tree_depth =
      nullptr;          // [tokens]; not given: the number of other nodes that the node sees
  void* out = nullptr;  // [tokens, heads, v_head_dim] contiguous
  DType out_dtype = DType::kF32;
  float* lse = nullptr;          // [heads, tokens], or not wanted
  bool batch_invariant = false;  // always so on a CPU
};

// On a CPU. Checks every index that an engine gives before it is followed.
Status run(const Params& params, const Parallel& parallel);

// The plan of run() for `batch` requests of q_len tokens and `context` keys each, in words.
Status explain(int64_t batch, int64_t q_len, int64_t context, int64_t heads, int64_t kv_heads,
               int threads, std::string& text);

}  // namespace lamina::paged_attention
