// sample: the ops that choose tokens.
//
// sample_tokens   tokens[i] ~ p_i, the distribution that row i of the logits and its temperature, top_k, top_p and
//                 min_p define
// verify_draft    for each request the path of accepted drafts and one more token, so that all tokens have the
//                 distribution of sample_tokens in a loop
// pack_tree_mask  the tree_mask, tree_len and tree_depth of paged_attention, from the parents of the nodes of draft
//                 trees
//
// Weights    w[j] = 2^40 exp((x[j] - max x) / temperature), rounded to 64-bit integers: weights.h. A sum of integers
//            does not depend on the order, so all backends get the same token, however they cut a row.
// Kept       In this order: top_k keeps the tokens not below the k-th largest logit. Then top_p keeps the largest
//            logits until their weights sum to top_p of the sum or more. min_p keeps the tokens with
//            w[j] >= min_p 2^40. Tokens with equal logits are kept or dropped together.
// Draw       The first token at which the running sum of kept weights, in order of ids, exceeds floor(u sum / 2^64).
//            u: 64 bits of Philox4x32-10 with key seed and counter (offset, stream, 0). Temperature 0: the largest
//            logit, and the lowest id among equals.
// Verify     Row 0 of a request is its last known token, the root; the other rows are drafts. Row i of the logits gives
//            the distribution p after row i. A walk begins at the root. Without draft_probs it draws the token as
//            sample_tokens does, with offset + depth, and goes on at the child that has this token. With draft_probs,
//            row i is the distribution q from which the children of row i were drawn, without replacement and in the
//            order of their rows. Child c is accepted with probability min(1, p[c] / q[c]). After a rejection p becomes
//            the normalised max(p - q, 0), and q loses c. A q without any weight left stands for drafts that were not
//            drawn: q[c] is then 1.
// Streams    0 draws tokens without draft_probs, and 2^32 - 1 draws them with draft_probs. Stream s > 0 decides on the
//            s-th child of a node. Drafts may therefore be drawn by sample_tokens with the same seed and offset.
// Total      For sample_tokens and verify_draft no value in a tensor is an error. A row or request that cannot be
//            sampled gets token 0 and a Flag, and no other row or request changes. A draft outside the vocabulary is
//            never accepted. pack_tree_mask refuses a bad parent or bad offsets.
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
  kOffsets = 5,     // cu_seqlens_q decrease, point outside the rows, or give more than max_len rows
  kNoRow = 6,       // a request without rows
};

// The logits and how to sample from them. Without a temperature it is 1; any other parameter that is not given is off.
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

// On CUDA. run_cuda(TreeMask) records a bad parent or offset: kv/error_word.h.
Status run_cuda(const Sample& checked, void* stream);
Status run_cuda(const Verify& checked, void* stream);
Status run_cuda(const TreeMask& params, void* stream);

Status explain(int64_t m, int64_t vocab, int threads, std::string& text);

}  // namespace lamina::sample
