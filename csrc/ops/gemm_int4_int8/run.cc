// check -> plan -> compute
#include "base/built_isas.h"
#include "gemm/cpu/plan.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::gemm_int4_int8 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) \
  LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#define LAMINA_CUDA_KERNEL(...)
#include "ops/gemm_int4_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL

const CpuOp& cpu_op() {
  static const CpuOp op{"gemm_int4_int8",
                        0.5,
                        {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) \
  LAMINA_IF_BUILT(isa, with_min_m(op##_##isa, min_m), )
#include "ops/gemm_int4_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
                        }};
  return op;
}

Status check(const Problem& problem) {
  return check_int4("gemm_int4_int8", problem, kMaxK,
                    "the most for which the int32 sums of a group are exact");
}

namespace {

int64_t features_of(const Params& p) { return p.perm.is_given() ? p.perm.features : p.problem.k; }

}  // namespace

int64_t workspace_bytes(const Params& p) {
  const int64_t row_bytes = features_of(p) + static_cast<int64_t>(sizeof(float));
  return p.has_floats ? p.problem.m * row_bytes : 0;
}

Status quantize_floats(Params& params, void* workspace, const Parallel& parallel) {
  if (!params.has_floats) return Status::ok();
  quantize_int8::Params quantize;
  quantize.m = params.problem.m;
  quantize.k = features_of(params);
  quantize.x = params.floats;
  quantize.x_dtype = params.floats_dtype;
  quantize.x_stride = params.a_stride;
  quantize.scale = static_cast<float*>(workspace);
  quantize.q = reinterpret_cast<int8_t*>(quantize.scale + quantize.m);
  if (Status status = quantize_int8::run(quantize, parallel); !status.is_ok()) return status;
  params.has_floats = false;
  params.a = quantize.q;
  params.a_stride = quantize.k;
  params.a_scale = {quantize.scale, 1};
  return Status::ok();
}

Status run(const Params& given, void* workspace, const Parallel& parallel) {
  Params params = given;
  const Problem& p = params.problem;
  if (Status status = check(p); !status.is_ok()) return status;
  if (Status status = check("gemm_int4_int8", params.perm, p.k); !status.is_ok()) return status;
  if (Status status = quantize_floats(params, workspace, parallel); !status.is_ok()) return status;
  return gemm::run(cpu_op(), params, parallel);
}

Status explain(const Problem& problem, int threads, std::string& text) {
  if (Status status = check(problem); !status.is_ok()) return status;
  return gemm::explain(cpu_op(), problem, threads, text);
}

}  // namespace lamina::gemm_int4_int8
