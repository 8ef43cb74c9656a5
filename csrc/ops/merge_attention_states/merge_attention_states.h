// merge_attention_states: attention over a set of keys, from attention over disjoint parts of the set.
//
//   lse[h,t] = m + log(sum_p exp(lse_p - m)),           m = max_p lse_p
//   out[t,h] = sum_p (e_p / d) * out_p[t,h],            e_p = exp(lse_p - M), M = max(m, sink[h]),
//                                                       d = sum_p e_p + exp(sink[h] - M)
//
// Order      Sums go over the parts in order, in f32 without fused multiply-adds; the sink comes last. All instruction
//            sets and CUDA give the same bits; exp and log are those of weights.h.
// Empty      A part whose weight e_p / d is 0, as where lse_p = -inf, is not read and changes no bit. Where all parts
//            have lse_p = -inf, out = 0 and lse = -inf. A lse_p that is NaN or +inf makes out and lse NaN.
// Reference  tests/reference/merge_attention_states.py
#pragma once

#include <cstdint>
#include <string>

#include "base/numeric.h"
#include "base/parallel.h"
#include "base/status.h"

namespace lamina::merge_attention_states {

struct Part {
  const void* out = nullptr;  // [tokens, heads, head_dim], unit stride in head_dim
  int64_t out_token_stride = 0, out_head_stride = 0;
  const float* lse = nullptr;  // [heads, tokens]
  int64_t lse_head_stride = 0, lse_token_stride = 0;
};

struct Params {
  int64_t tokens = 0, heads = 0, head_dim = 0;
  const Part* parts = nullptr;
  int64_t part_count = 0;
  DType dtype = DType::kF32;     // of every out_p
  const float* sinks = nullptr;  // [heads], or none
  void* out = nullptr;           // [tokens, heads, head_dim] contiguous
  DType out_dtype = DType::kF32;
  float* lse = nullptr;  // [heads, tokens] contiguous
};

Status run(const Params& params, const Parallel& parallel);

// The same on a GPU, for at most kMaxCudaParts parts: the kernel's arguments hold their pointers.
inline constexpr int64_t kMaxCudaParts = 64;
Status run_cuda(const Params& params, void* stream);

Status explain(std::string& text);

}  // namespace lamina::merge_attention_states
