#include <cstdint>

#include "ops/gemm_int4/gemm_int4.h"
#include "ops/gemm_int4/plan.h"

namespace lamina::gemm_int4 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) CpuKernel op##_##isa(int64_t);
#include "ops/gemm_int4/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

const CpuKernels& kernels() {
  static const CpuKernels all = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) op##_##isa(min_m),
#include "ops/gemm_int4/kernels.inc"
#undef LAMINA_CPU_KERNEL
  };
  return all;
}

}  // namespace

Status check(const Problem& problem) { return check("gemm_int4", problem, INT64_MAX, ""); }

Status run(const Params& params, const Parallel& parallel) {
  if (Status status = check(params.problem); !status.is_ok()) return status;
  if (Status status = check("gemm_int4", params.perm, params.problem.k); !status.is_ok())
    return status;
  return run(kernels(), params, parallel);
}

Status explain(const Problem& problem, int threads, std::string& text) {
  if (Status status = check(problem); !status.is_ok()) return status;
  return explain("gemm_int4", kernels(), problem, threads, text);
}

}  // namespace lamina::gemm_int4
