#include "ops/gemm_int4_int8/gemm_int4_int8.h"

#include "torch/accelerator.h"
#include "torch/int4.h"
#include "torch/interop.h"
#include "torch/ops.h"
#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
#include "ops/gemm_int4_int8/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

#if defined(LAMINA_CUDA_KERNELS)
void run_on(const Accelerator& accelerator, const gemm_int4_int8::Params& params, int max_sms,
            const Tensor& like) {
  const gemm::Problem& problem = params.problem;
  const gemm::CudaPlan plan = plan_product(accelerator, gemm_int4_int8::cuda_op(), problem,
                                           gemm_int4_int8::k_rule(problem), max_sms);
  const Workspace workspace(like, gemm_int4_int8::workspace_bytes(problem, plan));
  raise_if_bad(gemm_int4_int8::run_cuda(params, plan, workspace.data(), accelerator.stream));
}

std::string explain_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                         int64_t sm_count, std::optional<int64_t> group,
                         std::optional<int64_t> max_sms) {
  const gemm::Problem problem{m, n, k, group_of(group.value_or(-1), k)};
  raise_if_bad(gemm_int4_int8::check(problem));
  return explain_product(
      {"explain_gemm_int4_int8_cuda", compute_capability, sm_count, max_sms},
      gemm_int4_int8::cuda_op(), problem, gemm_int4_int8::k_rule(problem),
      [&](const auto& plan) { return gemm_int4_int8::workspace_bytes(problem, plan); });
}
#endif

std::string explain(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group) {
  std::string text;
  raise_if_bad(gemm_int4_int8::explain({m, n, k, group_of(group.value_or(-1), k)},
                                       TorchParallel().threads(), text));
  return text;
}

}  // namespace

Tensor multiply_int4_int8(const Tensor& a, const Tensor& w, const Tensor& w_scale, int64_t group,
                          std::optional<Tensor> a_scale, std::optional<Tensor> w_zero_point,
                          std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
                          ScalarType out_dtype, std::optional<std::string> activation,
                          std::optional<Tensor> gate, std::optional<Tensor> residual,
                          std::optional<Tensor> perm, std::optional<int64_t> max_sms) {
  constexpr const char* kOp = "gemm_int4_int8";
  const int sms = checked_sms(kOp, max_sms);
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  const Int4Inputs inputs{a, w, w_scale, group, w_zero_point, perm, then};
  gemm_int4_int8::Params params;
  const std::optional<Accelerator> accelerator =
      read_int4_int8(kOp, inputs, {a_scale, a_zero_point}, params,
                     [](const char* op, const gemm::Problem& problem, const Tensor& weight) {
                       raise_if_bad(gemm_int4_int8::check(problem));
                       require_packed_int4(op, "w", weight, problem.n, problem.k);
                     });
  Tensor out = new_result(kOp, a, inputs.n(), out_dtype, params);
  compute(accelerator, params, sms, a);
  return out;
}

void compute(const std::optional<Accelerator>& accelerator, const gemm_int4_int8::Params& params,
             int max_sms, const Tensor& like) {
  if (accelerator) {
    run_on(*accelerator, params, max_sms, like);
  } else {
    const Workspace workspace(like, gemm_int4_int8::workspace_bytes(params));
    raise_if_bad(gemm_int4_int8::run(params, workspace.data(), TorchParallel()));
  }
}

LAMINA_FRAGMENT(m) {
  m.def(
      "gemm_int4_int8(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? a_scale=None, Tensor? "
      "w_zero_point=None, Tensor? a_zero_point=None, Tensor? bias=None, ScalarType "
      "out_dtype=float, str? activation=None, Tensor? gate=None, Tensor? residual=None, Tensor? "
      "perm=None, int? max_sms=None) -> Tensor");
  m.def("explain_gemm_int4_int8(int m, int n, int k, int? group=None) -> str");
  m.def(
      "explain_gemm_int4_int8_cuda(int m, int n, int k, int compute_capability, int sm_count, int? "
      "group=None, int? max_sms=None) -> str");
}
LAMINA_IMPL(CPU, m) { m.impl("gemm_int4_int8", TORCH_BOX(&multiply_int4_int8)); }
LAMINA_IMPL(CUDA, m) { m.impl("gemm_int4_int8", TORCH_BOX(&multiply_int4_int8)); }
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_gemm_int4_int8", TORCH_BOX(&explain));
  m.impl("explain_gemm_int4_int8_cuda", TORCH_BOX(&explain_cuda));
}

}  // namespace lamina::interop
