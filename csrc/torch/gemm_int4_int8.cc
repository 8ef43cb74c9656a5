#include "ops/gemm_int4_int8/gemm_int4_int8.h"

#include "torch/accelerator.h"
#include "torch/epilogue.h"
#include "torch/int4.h"
#include "torch/interop.h"
#include "torch/product.h"

#if defined(LAMINA_CUDA_KERNELS)
#include "ops/gemm_int4_int8/cuda/run.h"
#endif

namespace lamina::interop {
namespace {

constexpr const char* kOp = "gemm_int4_int8";

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

Tensor gemm(const Tensor& a, const Tensor& w, const Tensor& w_scale, int64_t group,
            std::optional<Tensor> a_scale, std::optional<Tensor> w_zero_point,
            std::optional<Tensor> a_zero_point, std::optional<Tensor> bias, ScalarType out_dtype,
            std::optional<std::string> activation, std::optional<Tensor> gate,
            std::optional<Tensor> residual, std::optional<Tensor> perm,
            std::optional<int64_t> max_sms) {
  const int sms = checked_sms(kOp, max_sms);
  const EpilogueTensors then{kOp, a, bias, gate, residual};
  const Argument a_arg{kOp, "a", a}, w_scale_arg{kOp, "w_scale", w_scale};
  gemm_int4_int8::Params params;
  if (a_scale) {
    a_arg.has_dtype(ScalarType::Char);
  } else {
    require(a.scalar_type() != ScalarType::Char, kOp, "a_scale is missing; an int8 a needs one");
    params.has_floats = true;
    params.floats_dtype = a_arg.float_dtype();
    require(!a_zero_point, kOp, "a_zero_point was given; it is allowed only with a_scale");
  }
  a_arg.is_2d("[m, k]");
  require(w_scale.dim() == 2, kOp, "w_scale must be 2-D [ceil(k / group), n], got ",
          ShapeText{w_scale});
  params.perm = read_perm(kOp, perm, a.size(1));
  const int64_t m = a.size(0), k = perm ? perm->numel() : a.size(1), n = w_scale.size(1);
  params.problem = {m, n, k, group_of(group, k)};
  raise_if_bad(gemm_int4_int8::check(params.problem));
  require_packed_int4(kOp, "w", w, n, k);
  params.w = static_cast<const uint8_t*>(w.data_ptr());
  params.w_scale = read_groups(w_scale_arg, params.problem, false);
  if (w_zero_point)
    params.w_zero_point = read_groups({kOp, "w_zero_point", *w_zero_point}, params.problem, true);
  if (a_scale)
    params.a_scale =
        broadcast<float>({kOp, "a_scale", *a_scale}, ScalarType::Float, m, "[m] or [m, 1] with m");
  if (a_zero_point)
    params.a_zero_point = broadcast<int8_t>({kOp, "a_zero_point", *a_zero_point}, ScalarType::Char,
                                            m, "[m] or [m, 1] with m");
  then.read(m, n, activation, params);
  params.out_dtype = float_dtype(kOp, "out_dtype", out_dtype);

  const std::optional<Accelerator> accelerator =
      accelerator_of({a_arg,
                      {kOp, "w", w},
                      w_scale_arg,
                      then.argument("a_scale", a_scale),
                      then.argument("w_zero_point", w_zero_point),
                      then.argument("a_zero_point", a_zero_point),
                      then.argument("bias", bias),
                      then.argument("gate", gate),
                      then.argument("residual", residual),
                      then.argument("perm", perm)});
  params.a_stride = a_arg.row_stride();
  if (a_scale) {
    params.a = static_cast<const int8_t*>(a.data_ptr());
  } else {
    params.floats = a.data_ptr();
  }
  Tensor out = new_tensor(a, {m, n}, out_dtype);
  params.out = out.data_ptr();
  params.out_stride = n;
  if (accelerator) {
    run_on(*accelerator, params, sms, a);
  } else {
    const Workspace workspace(a, gemm_int4_int8::workspace_bytes(params));
    raise_if_bad(gemm_int4_int8::run(params, workspace.data(), TorchParallel()));
  }
  return out;
}

std::string explain(int64_t m, int64_t n, int64_t k, std::optional<int64_t> group) {
  std::string text;
  raise_if_bad(gemm_int4_int8::explain({m, n, k, group_of(group.value_or(-1), k)},
                                       TorchParallel().threads(), text));
  return text;
}

}  // namespace

LAMINA_IMPL(CPU, m) { m.impl("gemm_int4_int8", TORCH_BOX(&gemm)); }
LAMINA_IMPL(CUDA, m) { m.impl("gemm_int4_int8", TORCH_BOX(&gemm)); }
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_gemm_int4_int8", TORCH_BOX(&explain));
  m.impl("explain_gemm_int4_int8_cuda", TORCH_BOX(&explain_cuda));
}

}  // namespace lamina::interop
