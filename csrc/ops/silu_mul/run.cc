// plan -> multiply. The plan is small: it takes the last kernel that the ISA can run and cuts the rows evenly.
#include <vector>

#include "base/built_isas.h"
#include "base/cpu_kernel.h"
#include "base/row_plan.h"
#include "ops/silu_mul/cpu/kernel.h"
#include "ops/silu_mul/silu_mul.h"

namespace lamina::silu_mul {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#include "ops/silu_mul/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// At about 1 element a cycle a task takes longer than the wake-up of its thread, 5 us.
constexpr RowPlan kPlan{"silu_mul", "n", 16 * 1024};

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, op##_##isa, )
#include "ops/silu_mul/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  return rows;
}

}  // namespace

Status run(const Params& params, const Parallel& parallel) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  parallel.for_range(params.m, kPlan.grain_rows(params.n),
                     [&](int64_t begin, int64_t end) { kernel.run_rows(params, begin, end); });
  return Status::ok();
}

Status explain(int64_t m, int64_t n, int threads, std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  return kPlan.explain(m, n, choose_kernel(kernels(), cpu.isa).name, cpu.isa, threads, text);
}

}  // namespace lamina::silu_mul
