// check -> plan -> compute
#include "base/built_isas.h"
#include "gemm/cpu/plan.h"
#include "ops/gemm_int4/gemm_int4.h"

namespace lamina::gemm_int4 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) \
  LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#define LAMINA_CUDA_KERNEL(...)
#include "ops/gemm_int4/kernels.inc"
#undef LAMINA_CPU_KERNEL

const CpuOp& cpu_op() {
  static const CpuOp op{"gemm_int4",
                        0.5,
                        {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) \
  LAMINA_IF_BUILT(isa, with_min_m(op##_##isa, min_m), )
#include "ops/gemm_int4/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
                        }};
  return op;
}

Status check(const Problem& problem) { return check_int4("gemm_int4", problem, INT64_MAX, ""); }

Status run(const Params& params, const Parallel& parallel) {
  if (Status status = check(params.problem); !status.is_ok()) return status;
  if (Status status = check("gemm_int4", params.perm, params.problem.k); !status.is_ok())
    return status;
  Params chosen = params;
  chosen.problem.is_bf16 =
      params.a_dtype == DType::kBF16 &&
      (!params.w_zero_point.is_given() || params.w_zero_point.kind == GroupTensor::Kind::kU8);
  return gemm::run(cpu_op(), chosen, parallel);
}

Status explain(const Problem& problem, int threads, std::string& text) {
  if (Status status = check(problem); !status.is_ok()) return status;
  return gemm::explain(cpu_op(), problem, threads, text);
}

}  // namespace lamina::gemm_int4
