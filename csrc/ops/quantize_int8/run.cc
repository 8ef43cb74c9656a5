// check -> plan -> quantize. The plan is small: it takes the last kernel that the ISA can run and cuts the rows evenly.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

#include "base/built_isas.h"
#include "base/cpu_kernel.h"
#include "base/row_plan.h"
#include "ops/quantize_int8/cpu/kernel.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::quantize_int8 {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#include "ops/quantize_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// At about 4 elements a cycle a task takes longer than the wake-up of its thread, 5 us.
constexpr RowPlan kPlan{"quantize_int8", "k", 64 * 1024};

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, op##_##isa, )
#include "ops/quantize_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  return rows;
}

}  // namespace

Status check_scale(const char* what, const Broadcast<float>& scale, int64_t m) {
  for (int64_t i = 0; i < (scale.stride == 0 ? std::min<int64_t>(m, 1) : m); ++i)
    if (!(scale[i] >= FLT_MIN && scale[i] <= FLT_MAX))
      return Status::error(what, "[", i, "] = ", scale[i], " must be finite and at least ",
                           FLT_MIN);
  return Status::ok();
}

Status run(const Params& params, const Parallel& parallel) {
  CpuInfo cpu;
  if (params.static_scale.is_given())
    if (Status status = check_scale("quantize_int8: scale", params.static_scale, params.m);
        !status.is_ok())
      return status;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  parallel.for_range(params.m, kPlan.grain_rows(params.k),
                     [&](int64_t begin, int64_t end) { kernel.quantize_rows(params, begin, end); });
  return Status::ok();
}

Status explain(int64_t m, int64_t k, int threads, std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  return kPlan.explain(m, k, choose_kernel(kernels(), cpu.isa).name, cpu.isa, threads, text);
}

}  // namespace lamina::quantize_int8
