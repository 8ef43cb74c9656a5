// explain_matmul_sparse24*: the plans of the products with a 2:4 weight as text.
#include "ops/matmul_sparse24/matmul_sparse24.h"
#include "torch/int4.h"
#include "torch/int8.h"
#include "torch/interop.h"
#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
#include "ops/matmul_sparse24/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

namespace products = matmul_sparse24;

std::string on_cpu(const char* op, const gemm::Problem& problem) {
  std::string text;
  raise_if_bad(products::explain(op, problem, TorchParallel().threads(), text));
  return text;
}

std::string explain_float(int64_t m, int64_t n, int64_t k) {
  return on_cpu("matmul_sparse24", {m, n, k});
}

std::string explain_int8(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group) {
  return on_cpu("matmul_sparse24_int8",
                {m, n, k, int8_group_of("explain_matmul_sparse24_int8", group)});
}

std::string explain_int4(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group) {
  return on_cpu("matmul_sparse24_int4", {m, n, k, group_of(group.value_or(-1), k)});
}

std::string explain_int4_int8(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group) {
  return on_cpu("matmul_sparse24_int4_int8", {m, n, k, group_of(group.value_or(-1), k)});
}

#if defined(LAMINA_CUDA_KERNELS)
std::string explain_float_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                               int64_t sm_count, std::optional<int64_t> max_sms) {
  const gemm::Problem problem{m, n, k};
  raise_if_bad(products::check_float(problem));
  return explain_product({"explain_matmul_sparse24_cuda", compute_capability, sm_count, max_sms},
                         products::half_cuda_op(), problem, products::float_k_rule(problem),
                         [&](const auto& plan) { return plan.partial_bytes(problem); });
}

std::string explain_int8_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                              int64_t sm_count, std::optional<int64_t> max_sms) {
  const gemm::Problem problem{m, n, k};
  raise_if_bad(products::check_int8(problem));
  return explain_product(
      {"explain_matmul_sparse24_int8_cuda", compute_capability, sm_count, max_sms},
      products::int8_cuda_op(), problem, products::int8_k_rule(problem),
      [&](const auto& plan) { return plan.partial_bytes(problem); });
}

std::string explain_int4_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                              int64_t sm_count, std::optional<int64_t> group,
                              std::optional<int64_t> max_sms) {
  const gemm::Problem problem{m, n, k, group_of(group.value_or(-1), k)};
  raise_if_bad(products::check_int4(problem));
  return explain_product(
      {"explain_matmul_sparse24_int4_cuda", compute_capability, sm_count, max_sms},
      products::int4_cuda_op(), problem, products::float_k_rule(problem),
      [&](const auto& plan) { return plan.partial_bytes(problem); });
}

std::string explain_int4_int8_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                                   int64_t sm_count, std::optional<int64_t> group,
                                   std::optional<int64_t> max_sms) {
  const gemm::Problem problem{m, n, k, group_of(group.value_or(-1), k)};
  raise_if_bad(products::check_int4_int8(problem));
  return explain_product(
      {"explain_matmul_sparse24_int4_int8_cuda", compute_capability, sm_count, max_sms},
      products::int4_int8_cuda_op(), problem, products::int4_int8_k_rule(problem, false),
      [&](const auto& plan) {
        products::Int4Int8Params params;
        params.problem = problem;
        return products::workspace_bytes(params, plan);
      });
}
#else
std::string explain_float_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                               int64_t sm_count, std::optional<int64_t> max_sms) {
  return explain_cuda(m, n, k, compute_capability, sm_count, {}, max_sms);
}
constexpr auto& explain_int8_cuda = explain_float_cuda;
constexpr auto &explain_int4_cuda = explain_cuda, &explain_int4_int8_cuda = explain_cuda;
#endif

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def("explain_matmul_sparse24(int m, int n, int k) -> str");
  m.def("explain_matmul_sparse24_int8(int m, int n, int k, int? group=None) -> str");
  m.def("explain_matmul_sparse24_int4(int m, int n, int k, int? group=None) -> str");
  m.def("explain_matmul_sparse24_int4_int8(int m, int n, int k, int? group=None) -> str");
  m.def(
      "explain_matmul_sparse24_cuda(int m, int n, int k, int compute_capability, int sm_count, "
      "int? max_sms=None) -> str");
  m.def(
      "explain_matmul_sparse24_int8_cuda(int m, int n, int k, int compute_capability, int "
      "sm_count, int? max_sms=None) -> str");
  m.def(
      "explain_matmul_sparse24_int4_cuda(int m, int n, int k, int compute_capability, int "
      "sm_count, int? group=None, int? max_sms=None) -> str");
  m.def(
      "explain_matmul_sparse24_int4_int8_cuda(int m, int n, int k, int compute_capability, int "
      "sm_count, int? group=None, int? max_sms=None) -> str");
}
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_matmul_sparse24", TORCH_BOX(&explain_float));
  m.impl("explain_matmul_sparse24_int8", TORCH_BOX(&explain_int8));
  m.impl("explain_matmul_sparse24_int4", TORCH_BOX(&explain_int4));
  m.impl("explain_matmul_sparse24_int4_int8", TORCH_BOX(&explain_int4_int8));
  m.impl("explain_matmul_sparse24_cuda", TORCH_BOX(&explain_float_cuda));
  m.impl("explain_matmul_sparse24_int8_cuda", TORCH_BOX(&explain_int8_cuda));
  m.impl("explain_matmul_sparse24_int4_cuda", TORCH_BOX(&explain_int4_cuda));
  m.impl("explain_matmul_sparse24_int4_int8_cuda", TORCH_BOX(&explain_int4_int8_cuda));
}

}  // namespace lamina::interop
