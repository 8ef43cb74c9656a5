// merge_attention_states on a CPU: plain loops that the compiler vectorises with each ISA's flags.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/merge_attention_states/cpu/kernel.h"

namespace lamina::merge_attention_states {
namespace {

// Elements whose sums stay in L1 while all parts pass.
constexpr int64_t kBlock = 256;

template <class In, class Out>
void add_rows_of(const Params& p, int64_t token, int64_t head, const float* weights) {
  for (int64_t begin = 0; begin < p.head_dim; begin += kBlock) {
    const int64_t count = p.head_dim - begin < kBlock ? p.head_dim - begin : kBlock;
    alignas(64) float sum[kBlock];
    // -0 is the neutral element: -0 + x = x, also for x = -0.
    for (int64_t j = 0; j < count; ++j) sum[j] = -0.0f;
    for (int64_t i = 0; i < p.part_count; ++i) {
      if (weights[i] == 0.0f) continue;
      const Part& part = p.parts[i];
      const In* const x = static_cast<const In*>(part.out) + token * part.out_token_stride +
                          head * part.out_head_stride + begin;
      for (int64_t j = 0; j < count; ++j) sum[j] += weights[i] * to_f32(x[j]);
    }
    Out* const out = static_cast<Out*>(p.out) + (token * p.heads + head) * p.head_dim + begin;
    for (int64_t j = 0; j < count; ++j) out[j] = from_f32<Out>(sum[j]);
  }
}

template <class In>
void add_rows_from(const Params& p, int64_t token, int64_t head, const float* weights) {
  if (p.out_dtype == DType::kF32) add_rows_of<In, float>(p, token, head, weights);
  if (p.out_dtype == DType::kF16) add_rows_of<In, F16>(p, token, head, weights);
  if (p.out_dtype == DType::kBF16) add_rows_of<In, BF16>(p, token, head, weights);
}

constexpr CpuKernel make_kernel(const char* name, Isa isa) {
  return {name, isa, [](const Params& p, int64_t token, int64_t head, const float* weights) {
            if (p.dtype == DType::kF32) add_rows_from<float>(p, token, head, weights);
            if (p.dtype == DType::kF16) add_rows_from<F16>(p, token, head, weights);
            if (p.dtype == DType::kBF16) add_rows_from<BF16>(p, token, head, weights);
          }};
}

}  // namespace
}  // namespace lamina::merge_attention_states
