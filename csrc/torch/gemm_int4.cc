#include "ops/gemm_int4/gemm_int4.h"

#include "base/huge_pages.h"
#include "layout/int4.h"
#include "ops/gemm_int4/pack.h"
#include "torch/accelerator.h"
#include "torch/int4.h"
#include "torch/interop.h"
#include "torch/ops.h"
#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
#include "ops/gemm_int4/cuda/pack.h"
#include "ops/gemm_int4/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

int4::Layout layout_of(const char* op, const std::string& name) {
  int4::Layout layout = nullptr;
  raise_if_bad(gemm_int4::layout_of(op, name, layout));
  return layout;
}

#if defined(LAMINA_CUDA_KERNELS)
using gemm_int4::launch_pack, gemm_int4::launch_unpack;
#else
Status launch_pack(const uint8_t*, int64_t, int64_t, int64_t, int4::Layout, uint8_t*, const Perm&,
                   void*) {
  return Status::error("pack_int4: no CUDA kernel is built");
}
Status launch_unpack(const uint8_t*, int64_t, int64_t, int4::Layout, uint8_t*, void*) {
  return Status::error("unpack_int4: no CUDA kernel is built");
}
#endif

Tensor pack(const Tensor& q, std::string layout, std::optional<Tensor> perm) {
  constexpr const char* kOp = "pack_int4";
  const Argument q_arg{kOp, "q", q};
  q_arg.has_dtype(ScalarType::Byte);
  q_arg.is_2d("[n, k]");
  const int4::Layout place = layout_of(kOp, layout);
  const Perm order = read_perm(kOp, perm, q.size(1));
  const int64_t n = q.size(0), k = perm ? perm->numel() : q.size(1);
  Tensor data =
      new_tensor(q, {int4::tiles_n(n), int4::tiles_k(k), int4::kTileBytes}, ScalarType::Byte);
  const auto* const codes = static_cast<const uint8_t*>(q.data_ptr());
  auto* const packed = static_cast<uint8_t*>(data.data_ptr());
  const Argument perm_arg{kOp, "perm", perm ? *perm : q};
  if (const auto accelerator = accelerator_of({q_arg, perm_arg})) {
    raise_if_bad(
        launch_pack(codes, n, k, q_arg.row_stride(), place, packed, order, accelerator->stream));
    return data;
  }
  advise_huge_pages(data.data_ptr(), data.numel());
  raise_if_bad(
      gemm_int4::pack(codes, n, k, q_arg.row_stride(), place, packed, TorchParallel(), order));
  return data;
}

Tensor unpack(const Tensor& data, int64_t n, int64_t k, std::string layout) {
  constexpr const char* kOp = "unpack_int4";
  require(n >= 0 && k >= 0, kOp, "n = ", n, ", k = ", k, "; neither may be negative");
  const int4::Layout place = layout_of(kOp, layout);
  require_packed_int4(kOp, "data", data, n, k);
  Tensor q = new_tensor(data, {n, k}, ScalarType::Byte);
  const auto* const packed = static_cast<const uint8_t*>(data.data_ptr());
  auto* const codes = static_cast<uint8_t*>(q.data_ptr());
  if (const auto accelerator = accelerator_of({{kOp, "data", data}})) {
    raise_if_bad(launch_unpack(packed, n, k, place, codes, accelerator->stream));
  } else {
    raise_if_bad(gemm_int4::unpack(packed, n, k, place, codes, TorchParallel()));
  }
  return q;
}

#if defined(LAMINA_CUDA_KERNELS)
void run_on(const Accelerator& accelerator, const gemm_int4::Params& params, int max_sms,
            const Tensor& like) {
  raise_if_bad(gemm_int4::check_cuda(params));
  const gemm::Problem& problem = params.problem;
  const gemm::CudaPlan plan =
      plan_product(accelerator, gemm_int4::cuda_op(), problem, gemm_int4::k_rule(problem), max_sms);
  const Workspace workspace(like, plan.partial_bytes(problem));
  raise_if_bad(gemm_int4::run_cuda(params, plan, workspace.data(), accelerator.stream));
}

std::string explain_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                         int64_t sm_count, std::optional<int64_t> group,
                         std::optional<int64_t> max_sms) {
  const gemm::Problem problem{m, n, k, group_of(group.value_or(-1), k)};
  raise_if_bad(gemm_int4::check(problem));
  return explain_product({"explain_gemm_int4_cuda", compute_capability, sm_count, max_sms},
                         gemm_int4::cuda_op(), problem, gemm_int4::k_rule(problem),
                         [&](const auto& plan) { return plan.partial_bytes(problem); });
}
#endif

std::string explain(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group, bool bf16) {
  std::string text;
  raise_if_bad(gemm_int4::explain({m, n, k, group_of(group.value_or(-1), k), bf16},
                                  TorchParallel().threads(), text));
  return text;
}

}  // namespace

Tensor multiply_int4(const Tensor& a, const Tensor& w, const Tensor& w_scale, int64_t group,
                     std::optional<Tensor> w_zero_point, std::optional<Tensor> bias,
                     std::optional<ScalarType> out_dtype, std::optional<std::string> activation,
                     std::optional<Tensor> gate, std::optional<Tensor> residual,
                     std::optional<Tensor> perm, std::optional<int64_t> max_sms) {
  constexpr const char* kOp = "gemm_int4";
  const int sms = checked_sms(kOp, max_sms);
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  const Int4Inputs inputs{a, w, w_scale, group, w_zero_point, perm, then};
  gemm_int4::Params params;
  const std::optional<Accelerator> accelerator =
      read_int4(kOp, inputs, params, [](const char* op, const auto& problem, const Tensor& weight) {
        raise_if_bad(gemm_int4::check(problem));
        require_packed_int4(op, "w", weight, problem.n, problem.k);
      });
  Tensor out = new_result(kOp, a, inputs.n(), out_dtype.value_or(a.scalar_type()), params);
  compute(accelerator, params, sms, a);
  return out;
}

void compute(const std::optional<Accelerator>& accelerator, const gemm_int4::Params& params,
             int max_sms, const Tensor& like) {
  if (accelerator) {
    run_on(*accelerator, params, max_sms, like);
  } else {
    raise_if_bad(gemm_int4::run(params, TorchParallel()));
  }
}

LAMINA_FRAGMENT(m) {
  m.def("pack_int4(Tensor q, str layout, Tensor? perm=None) -> Tensor");
  m.def("unpack_int4(Tensor data, SymInt n, SymInt k, str layout) -> Tensor");
  m.def(
      "gemm_int4(Tensor a, Tensor w, Tensor w_scale, int group, Tensor? w_zero_point=None, Tensor? "
      "bias=None, ScalarType? out_dtype=None, str? activation=None, Tensor? gate=None, Tensor? "
      "residual=None, Tensor? perm=None, int? max_sms=None) -> Tensor");
  m.def("explain_gemm_int4(int m, int n, int k, int? group=None, bool bf16=False) -> str");
  m.def(
      "explain_gemm_int4_cuda(int m, int n, int k, int compute_capability, int sm_count, int? "
      "group=None, int? max_sms=None) -> str");
}
LAMINA_IMPL(CPU, m) {
  m.impl("gemm_int4", TORCH_BOX(&multiply_int4));
  m.impl("pack_int4", TORCH_BOX(&pack));
  m.impl("unpack_int4", TORCH_BOX(&unpack));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("gemm_int4", TORCH_BOX(&multiply_int4));
  m.impl("pack_int4", TORCH_BOX(&pack));
  m.impl("unpack_int4", TORCH_BOX(&unpack));
}
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_gemm_int4", TORCH_BOX(&explain));
  m.impl("explain_gemm_int4_cuda", TORCH_BOX(&explain_cuda));
}

}  // namespace lamina::interop
