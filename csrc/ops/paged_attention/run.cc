// check -> plan -> compute
#include <atomic>
#include <memory>
#include <sstream>
#include <vector>

#include "base/built_isas.h"
#include "base/cpu_kernel.h"
#include "base/work_stealing.h"
#include "ops/paged_attention/cpu/kernel.h"
#include "ops/paged_attention/plan.h"

namespace lamina::paged_attention {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#include "ops/paged_attention/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, op##_##isa, )
#include "ops/paged_attention/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  return rows;
}

}  // namespace

Status run(const Params& params, const Parallel& parallel) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  Plan chosen;
  if (Status status = plan(params, cpu.l2_bytes, parallel.threads(), chosen); !status.is_ok())
    return status;
  if (chosen.visits == 0) return Status::ok();
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  const size_t floats = static_cast<size_t>(
      chosen.parts > 1 ? chosen.parts * chosen.slots_per_part * slot_floats(params, chosen) : 0);
  const std::unique_ptr<float[]> partials(new float[floats]);
  const auto arrivals = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(chosen.parts));
  const Call call{params, chosen, partials.get(), arrivals.get()};
  const int64_t workers = std::min<int64_t>(parallel.threads(), chosen.parts);
  WorkStealing parts(chosen.parts, workers);
  parallel.for_range(workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      parts.run(worker, [&](int64_t part) { kernel.compute(call, part); });
  });
  return Status::ok();
}

Status explain(int64_t batch, int64_t q_len, int64_t context, int64_t heads, int64_t kv_heads,
               int threads, std::string& text) {
  constexpr int64_t kMost = 1 << 20;  // tokens, keys or heads
  constexpr const char* kOp = "explain_paged_attention: ";
  if (batch < 1 || q_len < 1 || batch * q_len > kMost || batch > kMost || q_len > kMost)
    return Status::error(kOp, "batch = ", batch, ", q_len = ", q_len,
                         "; both must be at least 1, and their product at most ", kMost);
  if (context < q_len || context > INT32_MAX)
    return Status::error(kOp, "context = ", context, "; must be between q_len = ", q_len, " and ",
                         INT32_MAX);
  if (kv_heads < 1 || heads < kv_heads || heads > kMost || heads % kv_heads != 0 ||
      heads / kv_heads > kMaxGroup)
    return Status::error(kOp, "heads = ", heads, ", kv_heads = ", kv_heads,
                         "; heads must be a multiple of kv_heads, at most ", kMaxGroup,
                         " times as many");
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  // Every request has one page as long as its context.
  const std::vector<int32_t> table(static_cast<size_t>(batch), 0);
  const std::vector<int32_t> seq_lens(table.size(), static_cast<int32_t>(context));
  std::vector<int32_t> starts(table.size() + 1, 0);
  for (size_t b = 0; b < table.size(); ++b) starts[b + 1] = starts[b] + static_cast<int32_t>(q_len);
  Params params;
  params.requests = batch, params.tokens = batch * q_len, params.max_seqlen_q = q_len;
  params.heads = heads, params.kv_heads = kv_heads;
  params.k.page = context, params.k.pages = 1;
  params.block_table = {table.data(), 1, batch, 1};
  params.seq_lens = seq_lens.data(), params.cu_seqlens_q = starts.data();
  Plan chosen;
  if (Status status = plan(params, cpu.l2_bytes, threads, chosen); !status.is_ok()) return status;
  std::ostringstream out;
  out << "paged_attention  batch = " << batch << ", q_len = " << q_len << ", context = " << context
      << ", heads = " << heads << ", kv_heads = " << kv_heads << " on a CPU\n"
      << "kernel           " << choose_kernel(kernels(), cpu.isa).name
      << ": best of this build for " << isa_name(cpu.isa) << "\n"
      << "tiles            " << chosen.tiles.size() << " of up to " << chosen.tile_rows
      << " rows: tokens of a request x query heads of a KV head, with an L2 of "
      << cpu.l2_bytes / 1024 << " KiB\n"
      << "visits           " << chosen.visits << ": tiles x KV heads x chunks of " << kChunk
      << " keys\n"
      << "parts            " << chosen.parts << " of " << chosen.visits / chosen.parts << " to "
      << ceil_div(chosen.visits, chosen.parts) << " visits, for " << threads << " threads\n";
  text = out.str();
  return Status::ok();
}

}  // namespace lamina::paged_attention
