// plan -> weights of a row -> its sum. The weights are computed here, once for all instruction sets.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/built_isas.h"
#include "base/cpu_kernel.h"
#include "ops/merge_attention_states/cpu/kernel.h"
#include "ops/merge_attention_states/merge_attention_states.h"
#include "ops/merge_attention_states/weights.h"

namespace lamina::merge_attention_states {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#include "ops/merge_attention_states/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// The fewest elements for which waking a thread pays: adding them takes longer than the wake-up, 5 us.
constexpr int64_t kGrainElements = 32 * 1024;

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, op##_##isa, )
#include "ops/merge_attention_states/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  return rows;
}

// weights[p] = exp(lse_p - base); returns their sum.
float exponentials(const std::vector<float>& lses, float base, std::vector<float>& weights) {
  float sum = 0.0f;
  for (size_t p = 0; p < lses.size(); ++p) {
    weights[p] = exp_of_difference(lses[p], base);
    sum += weights[p];
  }
  return sum;
}

// Turns the lses of a row into the weights of its parts and returns the lse of the row.
float weigh(const std::vector<float>& lses, const float* sink, std::vector<float>& weights) {
  float largest = kEmpty;
  for (const float lse : lses) largest = larger(largest, lse);
  if (largest == kEmpty) {
    std::fill(weights.begin(), weights.end(), 0.0f);
    return kEmpty;
  }
  float sum = exponentials(lses, largest, weights);
  const float lse = largest + log_of_sum(sum);
  if (sink != nullptr) {
    if (*sink > largest) sum = exponentials(lses, *sink, weights);
    sum += exp_of_difference(*sink, larger(largest, *sink));
  }
  for (float& weight : weights) weight /= sum;
  return lse;
}

}  // namespace

Status run(const Params& params, const Parallel& parallel) {
  const Params& p = params;
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  const int64_t row_elements = std::max<int64_t>(1, p.head_dim * p.part_count);
  const int64_t grain = std::max<int64_t>(1, kGrainElements / row_elements);
  const size_t row_bytes = static_cast<size_t>(p.head_dim * size_bytes(p.out_dtype));
  parallel.for_range(p.tokens * p.heads, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> lses(static_cast<size_t>(p.part_count)), weights(lses.size());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t token = row / p.heads, head = row % p.heads;
      for (size_t i = 0; i < lses.size(); ++i) {
        const Part& part = p.parts[i];
        lses[i] = part.lse[head * part.lse_head_stride + token * part.lse_token_stride];
      }
      const float lse = weigh(lses, p.sinks == nullptr ? nullptr : p.sinks + head, weights);
      p.lse[head * p.tokens + token] = lse;
      if (lse == kEmpty) {
        std::memset(static_cast<char*>(p.out) + static_cast<size_t>(row) * row_bytes, 0, row_bytes);
      } else {
        kernel.add_rows(p, token, head, weights.data());
      }
    }
  });
  return Status::ok();
}

Status explain(std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  text = std::string("kernel         ") + kernel.name + "\n";
  return Status::ok();
}

}  // namespace lamina::merge_attention_states
