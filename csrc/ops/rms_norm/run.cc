// check -> plan -> normalise. The plan is small: it takes the last kernel that the ISA can run and cuts the rows evenly.
#include <cfloat>
#include <vector>

#include "base/built_isas.h"
#include "base/cpu_kernel.h"
#include "base/row_plan.h"
#include "ops/rms_norm/cpu/kernel.h"
#include "ops/rms_norm/rms_norm.h"

namespace lamina::rms_norm {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#include "ops/rms_norm/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// At about 2 elements a cycle a task takes longer than the wake-up of its thread, 5 us.
constexpr RowPlan kPlan{"rms_norm", "n", 32 * 1024};

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, op##_##isa, )
#include "ops/rms_norm/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  return rows;
}

}  // namespace

Status check(const char* op, const Params& params) {
  if (params.n > kMaxN)
    return Status::error(op, ": n = ", params.n, "; at most ", kMaxN,
                         ", up to which an f32 holds n exactly");
  if (!(params.eps >= FLT_MIN && params.eps <= FLT_MAX))
    return Status::error(op, ": eps = ", params.eps, " must be finite and at least ", FLT_MIN);
  return Status::ok();
}

Status run(const Params& checked, const Parallel& parallel) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  parallel.for_range(checked.m, kPlan.grain_rows(checked.n),
                     [&](int64_t begin, int64_t end) { kernel.run_rows(checked, begin, end); });
  return Status::ok();
}

Status explain(int64_t m, int64_t n, int threads, std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  return kPlan.explain(m, n, choose_kernel(kernels(), cpu.isa).name, cpu.isa, threads, text);
}

}  // namespace lamina::rms_norm
