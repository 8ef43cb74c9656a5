// sample: the ops that choose tokens.
//
// sample_tokens   tokens[i] ~ p_i, the distribution that row i of the logits and its temperature, top_k, top_p, min_p define
// verify_draft    per request: the path of drafts that is accepted, and one more token, so that all tokens have the
//                 distribution of sample_tokens in a loop
// pack_tree_mask  the parents of the nodes of draft trees as the tree_mask, tree_len and tree_depth of paged_attention
//
// Weights    w[j] = 2^40 exp((x[j] - max x) / temperature), rounded to 64-bit integers: weights.h. Sums of integers do not depend
//            on their order, so all backends get the same token, however they cut a row.
// Kept       in this order: top_k: tokens not below the k-th largest logit; top_p: of these, the largest logits whose
//            weights sum to top_p of the sum or more; min_p: tokens with w[j] >= min_p 2^40. Ties are kept or dropped together.
// Draw       token = the first whose sum of kept weights, in order of ids, is above floor(u sum / 2^64). u: 64 bits of
//            Philox4x32-10 with key seed and counter (offset, stream, 0). Temperature 0: the lowest id of the largest logit.
// Verify     row 0 of a request is its last known token, the root; the other rows are drafts. Row i of the logits is the
//            distribution after row i, so a walk starts at the root. Without draft_probs it draws the token as
//            sample_tokens does, with offset + depth, and goes on at the child that has this token. With them the
//            children of a node were drawn one by one without replacement from row i of draft_probs, and child c is
//            accepted with probability min(1, p[c] / q[c]); if it is not, p becomes the normalised max(p - q, 0), and q
//            loses c. A q without any weight left stands for a draft that was not drawn: its q is then 1.
// Streams    0 draws tokens without draft_probs, 2^32 - 1 draws them with; s decides on the s-th child of a node. Drafts may
//            therefore be drawn by sample_tokens with the same seed and offset.
// Total      No content of a tensor is an error of the call. A row or request that cannot be sampled gets token 0 and a Flag; no other row
//            and no other request changes. A draft that is not in the vocabulary is never accepted.
// Reference  tests/reference/sample.py
#pragma once

#include <cstdint>
#include <string>

#include "base/broadcast.h"
#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"

namespace lamina::sample {

// 2^22 weights of 2^40 sum to at most 2^62.
inline constexpr int64_t kMaxVocab = int64_t{1} << 22;

// Why a row or a request has no token. The values are part of the interface.
enum class Flag : int32_t {
  kNone = 0,
  kParameter = 1,   // temperature, top_p or min_p
  kNotFinite = 2,   // a logit that is NaN or +Inf
  kNoToken = 3,     // all logits are -Inf
  kDraftProbs = 4,  // a probability that is NaN, negative or above kLargestDraftProb
  kOffsets = 5,     // cu_seqlens_q
  kNoRow = 6,       // a request without rows
};

// The logits and how to sample from them. A parameter that is not given is off; temperature is then 1.
struct Target {
  const void* logits = nullptr;  // [rows, vocab], unit column stride
  DType dtype = DType::kF32;
  int64_t rows = 0, vocab = 0, stride = 0;
  // One for each row, or for verify_draft for each request.
  Broadcast<float> temperature, top_p, min_p;
  Broadcast<int32_t> top_k;
  Broadcast<int64_t> seed, offset;
};

struct Sample {
  Target target;
  int32_t *tokens = nullptr, *flags = nullptr;  // [rows]
};

// Integers of 32 or of 64 bits.
struct Ids {
  const int32_t* narrow = nullptr;
  const int64_t* wide = nullptr;
};

struct Verify {
  Target target;
  Ids draft_tokens;                     // [rows]
  int64_t requests = 0, max_len = 0;    // max_len: the most rows of a request
  const int32_t* cu_seqlens = nullptr;  // [requests + 1]
  const int32_t* parents = nullptr;     // [rows], counted in the request; none: a chain
  const float* draft_probs = nullptr;   // [rows, vocab], unit column stride, or none
  int64_t draft_stride = 0;
  int32_t *tokens = nullptr, *accepted = nullptr;                // [requests, max_len]
  int32_t *count = nullptr, *bonus = nullptr, *flags = nullptr;  // [requests]
};

struct TreeMask {
  int64_t rows = 0, requests = 0, max_len = 0;
  const int32_t* parents = nullptr;          // [rows]
  const int32_t* cu_seqlens = nullptr;       // [requests + 1]
  int32_t* mask = nullptr;                   // [rows, words_of(max_len)]
  int32_t *len = nullptr, *depth = nullptr;  // [requests], [rows]
};

constexpr int64_t words_of(int64_t nodes) { return (nodes + 31) / 32; }

Status check(const char* op, const Target& target);

Status run(const Sample& checked, const Parallel& parallel);
Status run(const Verify& checked, const Parallel& parallel);
// A parent or an offset that is out of range is an error.
Status run(const TreeMask& params);

// On a GPU. A bad parent or offset is recorded: kv/error_word.h.
Status run_cuda(const Sample& checked, void* stream);
Status run_cuda(const Verify& checked, void* stream);
Status run_cuda(const TreeMask& params, void* stream);

Status explain(int64_t m, int64_t vocab, int threads, std::string& text);

}  // namespace lamina::sample
