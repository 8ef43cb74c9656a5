#include "ops/gemm_int8/gemm_int8.h"

#include <tuple>

#include "base/huge_pages.h"
#include "layout/int8_tile.h"
#include "ops/gemm_int8/pack.h"
#include "ops/gemm_int8/quantized.h"
#include "torch/accelerator.h"
#include "torch/int8.h"
#include "torch/int8_rows.h"
#include "torch/interop.h"
#include "torch/ops.h"
#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
#include "ops/gemm_int8/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

void require_packed(const char* op, const char* name, const Tensor& w, int64_t n, int64_t k) {
  Argument{op, name, w}.has_dtype(ScalarType::Char);
  require(w.dim() == 5 && w.size(0) == int8_tile::tiles_n(n) &&
              w.size(1) == int8_tile::tiles_k(k) && w.size(2) == int8_tile::kGroups &&
              w.size(3) == int8_tile::kTileN && w.size(4) == int8_tile::kGroupK,
          op, name, " must be packed by pack_int8 from [n, k] = [", n, ", ", k, "], so 5-D [",
          int8_tile::tiles_n(n), ", ", int8_tile::tiles_k(k), ", 16, 16, 4], got ", ShapeText{w});
  require(w.is_contiguous(), op, name, " must be contiguous; call .contiguous()");
}

void require_packed_w(const char* op, const Tensor& w, const gemm::Problem& problem) {
  require_packed(op, "w", w, problem.n, problem.k);
}

#if defined(LAMINA_CUDA_KERNELS)
// Plans the call and calls launch(plan, workspace).
template <class Launch>
void run_on(const Accelerator& accelerator, const gemm_int8::Params& params, int max_sms,
            const Tensor& like, const Launch& launch) {
  const gemm::Problem& problem = params.problem;
  const gemm::CudaPlan plan =
      plan_product(accelerator, gemm_int8::cuda_op(problem.is_grouped()), problem,
                   gemm_int8::k_rule(problem), max_sms, gemm_int8::a_alignment(params));
  const Workspace workspace(like, plan.partial_bytes(problem));
  raise_if_bad(launch(plan, workspace.data()));
}

void run_on(const Accelerator& accelerator, const gemm_int8::Params& params, int max_sms,
            const Tensor& like) {
  run_on(accelerator, params, max_sms, like, [&](const auto& plan, void* workspace) {
    return gemm_int8::run_cuda(params, plan, workspace, accelerator.stream);
  });
}

void run_on(const Accelerator& accelerator, const gemm_int8::QuantizedParams& params, int max_sms,
            const Tensor& like) {
  run_on(accelerator, params.gemm, max_sms, like, [&](const auto& plan, void* workspace) {
    return gemm_int8::run_quantized_cuda(params, plan, workspace, accelerator.stream);
  });
}

std::string explain_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                         int64_t sm_count, std::optional<int64_t> group,
                         std::optional<int64_t> max_sms) {
  constexpr const char* kExplain = "explain_gemm_int8_cuda";
  const gemm::Problem problem{m, n, k, int8_group_of(kExplain, group)};
  raise_if_bad(gemm_int8::check(problem));
  return explain_product({kExplain, compute_capability, sm_count, max_sms},
                         gemm_int8::cuda_op(problem.is_grouped()), problem,
                         gemm_int8::k_rule(problem),
                         [&](const auto& plan) { return plan.partial_bytes(problem); });
}
#endif

std::tuple<Tensor, Tensor, Tensor> gemm_quantized(
    const Tensor& a, const Tensor& w, const Tensor& w_sums, const Tensor& a_scale,
    const Tensor& w_scale, std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
    std::optional<std::string> activation, std::optional<Tensor> gate,
    std::optional<Tensor> residual, std::optional<Tensor> out_scale, bool symmetric,
    std::optional<int64_t> max_sms) {
  constexpr const char* kOp = "gemm_int8_quantized";
  const int sms = checked_sms(kOp, max_sms);
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  const Int8Inputs inputs{a, w, w_sums, a_scale, w_scale, a_zero_point, then, out_scale};
  gemm_int8::QuantizedParams params;
  const std::optional<Accelerator> accelerator =
      read_int8(kOp, inputs, params.gemm, require_packed_w);
  require(!out_scale || symmetric, kOp,
          "out_scale was given; it is allowed only with symmetric = True");
  const int64_t m = inputs.m(), n = inputs.n();
  const Int8Tensors to(a, m, n, symmetric);
  static_cast<Int8Rows&>(params.quantize) = to.rows();
  params.quantize.m = m;
  params.quantize.k = n;
  params.quantize.static_scale = params.gemm.out_scale;
  const Workspace workspace(a, params.workspace_bytes());
  params.connect(workspace.data());
  if (accelerator) {
    run_on(*accelerator, params, sms, a);
  } else {
    raise_if_bad(gemm_int8::run_quantized(params, TorchParallel()));
  }
  return {to.q, to.scale, to.zero_point};
}

std::tuple<Tensor, Tensor> pack(const Tensor& w, std::optional<int64_t> group) {
  const Argument w_arg{"pack_int8", "w", w};
  w_arg.has_dtype(ScalarType::Char);
  w_arg.is_2d("[n, k]");
  const int64_t n = w.size(0), k = w.size(1);
  const gemm::Problem problem{0, n, k, int8_group_of("pack_int8", group)};
  Tensor data = new_tensor(w,
                           {int8_tile::tiles_n(n), int8_tile::tiles_k(k), int8_tile::kGroups,
                            int8_tile::kTileN, int8_tile::kGroupK},
                           ScalarType::Char);
  Tensor sums = problem.is_grouped() ? new_tensor(w, {problem.groups(), n}, ScalarType::Int)
                                     : new_tensor(w, {n}, ScalarType::Int);
  advise_huge_pages(data.data_ptr(), data.numel());  // one byte each
  raise_if_bad(gemm_int8::pack(static_cast<const int8_t*>(w.data_ptr()), problem,
                               w_arg.row_stride(), static_cast<int8_t*>(data.data_ptr()),
                               static_cast<int32_t*>(sums.data_ptr()), TorchParallel()));
  return {data, sums};
}

Tensor unpack(const Tensor& data, int64_t n, int64_t k) {
  require(n >= 0 && k >= 0, "unpack_int8", "n = ", n, ", k = ", k, "; neither may be negative");
  require_packed("unpack_int8", "data", data, n, k);
  Tensor w = new_tensor(data, {n, k}, ScalarType::Char);
  raise_if_bad(gemm_int8::unpack(static_cast<const int8_t*>(data.data_ptr()), n, k,
                                 static_cast<int8_t*>(w.data_ptr()), TorchParallel()));
  return w;
}

std::tuple<Tensor, Tensor> pack_cuda(const Tensor&, std::optional<int64_t>) {
  fail("pack_int8", "packs on the CPU only: move w there, and the packed weight back");
}
Tensor unpack_cuda(const Tensor&, int64_t, int64_t) {
  fail("unpack_int8", "unpacks on the CPU only: move data there");
}

std::string explain(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group) {
  std::string text;
  const gemm::Problem problem{m, n, k, int8_group_of("explain_gemm_int8", group)};
  raise_if_bad(gemm_int8::explain(problem, TorchParallel().threads(), text));
  return text;
}

}  // namespace

Tensor multiply_int8(const Tensor& a, const Tensor& w, const Tensor& w_sums, const Tensor& a_scale,
                     const Tensor& w_scale, std::optional<Tensor> a_zero_point,
                     std::optional<Tensor> bias, ScalarType out_dtype,
                     std::optional<std::string> activation, std::optional<Tensor> gate,
                     std::optional<Tensor> residual, std::optional<int64_t> max_sms) {
  constexpr const char* kOp = "gemm_int8";
  const int sms = checked_sms(kOp, max_sms);
  const EpilogueArguments then{kOp, a, bias, activation, gate, residual};
  const Int8Inputs inputs{a, w, w_sums, a_scale, w_scale, a_zero_point, then};
  gemm_int8::Params params;
  const std::optional<Accelerator> accelerator = read_int8(kOp, inputs, params, require_packed_w);
  Tensor out = new_result(kOp, a, inputs.n(), out_dtype, params);
  compute(accelerator, params, sms, a);
  return out;
}

void compute(const std::optional<Accelerator>& accelerator, const gemm_int8::Params& params,
             int max_sms, const Tensor& like) {
  if (accelerator) {
    run_on(*accelerator, params, max_sms, like);
  } else {
    raise_if_bad(gemm_int8::run(params, TorchParallel()));
  }
}

LAMINA_FRAGMENT(m) {
  m.def("pack_int8(Tensor w, int? group=None) -> (Tensor data, Tensor column_sums)");
  m.def("unpack_int8(Tensor data, SymInt n, SymInt k) -> Tensor");
  m.def(
      "gemm_int8(Tensor a, Tensor w, Tensor w_sums, Tensor a_scale, Tensor w_scale, Tensor? "
      "a_zero_point=None, "
      "Tensor? bias=None, ScalarType out_dtype=float, str? activation=None, Tensor? gate=None, "
      "Tensor? residual=None, int? max_sms=None) -> Tensor");
  m.def(
      "gemm_int8_quantized(Tensor a, Tensor w, Tensor w_sums, Tensor a_scale, Tensor w_scale, "
      "Tensor? a_zero_point=None, Tensor? bias=None, str? activation=None, Tensor? gate=None, "
      "Tensor? residual=None, Tensor? out_scale=None, bool symmetric=True, int? max_sms=None) "
      "-> (Tensor q, Tensor scale, Tensor zero_point)");
  m.def("explain_gemm_int8(int m, int n, int k, int? group=None) -> str");
  m.def(
      "explain_gemm_int8_cuda(int m, int n, int k, int compute_capability, int sm_count, int? "
      "group=None, int? max_sms=None) -> str");
}
LAMINA_IMPL(CPU, m) {
  m.impl("gemm_int8", TORCH_BOX(&multiply_int8));
  m.impl("gemm_int8_quantized", TORCH_BOX(&gemm_quantized));
  m.impl("pack_int8", TORCH_BOX(&pack));
  m.impl("unpack_int8", TORCH_BOX(&unpack));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("gemm_int8", TORCH_BOX(&multiply_int8));
  m.impl("gemm_int8_quantized", TORCH_BOX(&gemm_quantized));
  m.impl("pack_int8", TORCH_BOX(&pack_cuda));
  m.impl("unpack_int8", TORCH_BOX(&unpack_cuda));
}
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_gemm_int8", TORCH_BOX(&explain));
  m.impl("explain_gemm_int8_cuda", TORCH_BOX(&explain_cuda));
}

}  // namespace lamina::interop
