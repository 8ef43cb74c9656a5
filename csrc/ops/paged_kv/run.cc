// append and gather: check, take the last kernel that the ISA can run, cut the tokens among threads.
#include <algorithm>
#include <cfloat>
#include <vector>

#include "base/built_isas.h"
#include "base/cpu_kernel.h"
#include "base/int_math.h"
#include "ops/paged_kv/cpu/kernel.h"
#include "ops/paged_kv/paged_kv.h"

namespace lamina::paged_kv {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#include "ops/paged_kv/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// The fewest elements for which waking a thread pays: moving them takes longer than the wake-up, 5 us.
constexpr int64_t kGrainElements = 32 * 1024;

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, op##_##isa, )
#include "ops/paged_kv/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  return rows;
}

int64_t grain_tokens(int64_t elements) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, elements));
}

Status check_scale(const char* name, const WrittenScales& scale) {
  if (!scale.is_given() || scale.is_per_token() ||
      (*scale.data >= FLT_MIN && *scale.data <= FLT_MAX))
    return Status::ok();
  return Status::error("append_paged_kv: ", name, " = ", *scale.data,
                       " must be finite and at least ", FLT_MIN);
}

Status check(const Append& p) {
  const int64_t slots = checked_product(p.k_cache.pages, p.k_cache.page).value_or(INT64_MAX);
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t slot = p.slot_mapping[t];
    if (slot < -1 || slot >= slots)
      return Status::error("append_paged_kv: slot_mapping[", t, "] = ", slot,
                           " must be -1, or at least 0 and below pages * page = ", slots);
    if (p.rope.cos == nullptr || (slot < 0 && p.q.data == nullptr)) continue;
    const int64_t position = p.rope.position(t);
    if (position < 0 || position >= p.rope.positions)
      return Status::error("append_paged_kv: positions[", t, "] = ", position,
                           " must be at least 0 and below the rows of cos, ", p.rope.positions);
  }
  if (Status status = check_scale("k_scale", p.k_scale); !status.is_ok()) return status;
  return check_scale("v_scale", p.v_scale);
}

}  // namespace

Status append(const Append& params, const Parallel& parallel) {
  if (Status status = check(params); !status.is_ok()) return status;
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  const int64_t elements = params.k.heads * (params.k.head_dim + params.v.head_dim);
  const int64_t parts =
      std::min<int64_t>(parallel.threads(), ceil_div(params.tokens, grain_tokens(elements)));
  parallel.for_range(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) kernel.append(params, part, parts);
  });
  if (params.q.data != nullptr)
    parallel.for_range(params.tokens, grain_tokens(params.q.heads * params.q.head_dim),
                       [&](int64_t begin, int64_t end) { kernel.rotate_q(params, begin, end); });
  return Status::ok();
}

Status gather(const Gather& params, const Parallel& parallel) {
  const kv::BlockTable& table = params.block_table;
  const char* const op = "gather_paged_kv";
  if (Status status =
          kv::check_offsets(op, "cu_seqlens_k", params.cu_seqlens_k, table.requests, params.tokens);
      !status.is_ok())
    return status;
  for (int64_t r = 0; r < table.requests; ++r)
    if (Status status =
            kv::check_slots(op, table, r, 0, params.cu_seqlens_k[r + 1] - params.cu_seqlens_k[r],
                            params.k_cache, "cu_seqlens_k");
        !status.is_ok())
      return status;
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  const int64_t elements =
      params.k_cache.heads * (params.k_cache.head_dim + params.v_cache.head_dim);
  parallel.for_range(params.tokens, grain_tokens(elements),
                     [&](int64_t begin, int64_t end) { kernel.gather(params, begin, end); });
  return Status::ok();
}

Status explain(std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  text = std::string("kernel         ") + kernel.name + "\n";
  return Status::ok();
}

}  // namespace lamina::paged_kv
