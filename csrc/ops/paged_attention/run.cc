// check -> plan -> compute
#include <atomic>
#include <memory>

#include "base/cpu_kernel.h"
#include "base/work_stealing.h"
#include "ops/paged_attention/cpu/kernel.h"
#include "ops/paged_attention/plan.h"

namespace lamina::paged_attention {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) CpuKernel op##_##isa();
#include "ops/paged_attention/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) op##_##isa(),
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

}  // namespace lamina::paged_attention
