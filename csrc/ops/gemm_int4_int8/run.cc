#include "ops/gemm_int4/plan.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"

namespace lamina::gemm_int4_int8 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) gemm_int4::CpuKernel op##_##isa(int64_t);
#include "ops/gemm_int4_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

const gemm_int4::CpuKernels& kernels() {
  static const gemm_int4::CpuKernels all = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) op##_##isa(min_m),
#include "ops/gemm_int4_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL
  };
  return all;
}

}  // namespace

Status check(const Problem& problem) {
  return gemm_int4::check("gemm_int4_int8", problem, kMaxK,
                          "the most for which the int32 sums of a group are exact");
}

Status run(const Params& params, const Parallel& parallel) {
  if (Status status = check(params.problem); !status.is_ok()) return status;
  if (Status status = gemm_int4::check("gemm_int4_int8", params.perm, params.problem.k);
      !status.is_ok())
    return status;
  return gemm_int4::run(kernels(), params, parallel);
}

Status explain(const Problem& problem, int threads, std::string& text) {
  if (Status status = check(problem); !status.is_ok()) return status;
  return gemm_int4::explain("gemm_int4_int8", kernels(), problem, threads, text);
}

}  // namespace lamina::gemm_int4_int8
