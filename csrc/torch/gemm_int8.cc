#include "ops/gemm_int8/gemm_int8.h"

#include <tuple>

#include "base/huge_pages.h"
#include "layout/int8_tile.h"
#include "ops/gemm_int8/pack.h"
#include "torch/accelerator.h"
#include "torch/interop.h"

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_TWIN)
#include "ops/gemm_int8/cuda/plan.h"
#endif

namespace lamina::interop {
namespace {

constexpr const char* kOp = "gemm_int8";

void require_packed(const char* op, const char* name, const Tensor& w, int64_t n, int64_t k) {
  Argument{op, name, w}.has_dtype(ScalarType::Char);
  require(w.dim() == 5 && w.size(0) == int8_tile::tiles_n(n) &&
              w.size(1) == int8_tile::tiles_k(k) && w.size(2) == int8_tile::kGroups &&
              w.size(3) == int8_tile::kTileN && w.size(4) == int8_tile::kGroupK,
          op, name, " must be packed by pack_int8 from [n, k] = [", n, ", ", k, "], so 5-D [",
          int8_tile::tiles_n(n), ", ", int8_tile::tiles_k(k), ", 16, 16, 4], got ", shape_text(w));
  require(w.is_contiguous(), op, name, " must be contiguous; call .contiguous()");
}

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_TWIN)
void run_on(const Accelerator& accelerator, const gemm_int8::Params& params, const Tensor& like) {
  raise_if_bad(gemm_int8::check_cuda(params.problem, accelerator.device));
  const gemm_int8::CudaPlan plan = gemm_int8::plan_cuda(
      params.problem, accelerator.device, gemm_int8::row_alignment(params), accelerator.kernel);
  require(plan.kernel.launch != nullptr, "set_cuda_kernel", "name = \"", accelerator.kernel,
          "\": no CUDA kernel of this name for compute capability ",
          accelerator.device.compute_capability, " and an a whose rows start at multiples of ",
          gemm_int8::row_alignment(params), " bytes");
  const Tensor workspace =
      new_tensor(like, {plan.workspace_bytes(params.problem)}, ScalarType::Char);
  raise_if_bad(gemm_int8::run_cuda(params, plan, workspace.data_ptr(), accelerator.stream));
}

std::string explain_cuda(int64_t m, int64_t n, int64_t k, int64_t compute_capability,
                         int64_t sm_count) {
  constexpr const char* kExplain = "explain_gemm_int8_cuda";
  require(compute_capability >= 0 && compute_capability < 1000, kExplain,
          "compute_capability = ", compute_capability, "; 80 stands for 8.0");
  require(sm_count > 0 && sm_count < 100000, kExplain, "sm_count = ", sm_count,
          " must be between 1 and 99999");
  const gemm_int8::Problem problem{m, n, k};
  const DeviceInfo device =
      typical_device(static_cast<int>(compute_capability), static_cast<int>(sm_count));
  raise_if_bad(gemm_int8::check_cuda(problem, device));
  return gemm_int8::plan_cuda(problem, device, 16).describe(problem, device);
}
#else
[[noreturn]] void run_on(const Accelerator&, const gemm_int8::Params&, const Tensor&) {
  fail(kOp, "no CUDA kernel is built");
}

std::string explain_cuda(int64_t, int64_t, int64_t, int64_t, int64_t) {
  fail("explain_gemm_int8_cuda", "no CUDA kernel is built");
}
#endif

Tensor gemm(const Tensor& a, const Tensor& w, const Tensor& w_sums, const Tensor& a_scale,
            const Tensor& w_scale, std::optional<Tensor> a_zero_point, std::optional<Tensor> bias,
            ScalarType out_dtype) {
  const Argument a_arg{kOp, "a", a};
  a_arg.has_dtype(ScalarType::Char);
  a_arg.is_2d("[m, k]");
  const int64_t m = a.size(0), k = a.size(1), n = w_sums.numel();
  const Argument sums_arg{kOp, "w_sums", w_sums};
  sums_arg.has_dtype(ScalarType::Int);
  sums_arg.is_vector("n", n);
  require_packed(kOp, "w", w, n, k);

  const Argument bias_arg{kOp, "bias", bias ? *bias : a};
  const Argument zero_point_arg{kOp, "a_zero_point", a_zero_point ? *a_zero_point : a};
  const Argument a_scale_arg{kOp, "a_scale", a_scale}, w_scale_arg{kOp, "w_scale", w_scale};
  const std::optional<Accelerator> accelerator = accelerator_of(
      {a_arg, {kOp, "w", w}, sums_arg, a_scale_arg, w_scale_arg, zero_point_arg, bias_arg});

  gemm_int8::Params params;
  params.problem = {m, n, k};
  params.a = static_cast<const int8_t*>(a.data_ptr());
  params.a_stride = a_arg.row_stride();
  params.w = static_cast<const int8_t*>(w.data_ptr());
  params.w_sums = static_cast<const int32_t*>(w_sums.data_ptr());
  params.a_scale = broadcast<float>(a_scale_arg, ScalarType::Float, m, "[m] or [m, 1] with m");
  params.w_scale = broadcast<float>(w_scale_arg, ScalarType::Float, n, "[n] or [n, 1] with n");
  if (a_zero_point)
    params.a_zero_point =
        broadcast<int8_t>(zero_point_arg, ScalarType::Char, m, "[m] or [m, 1] with m");
  if (bias) {
    params.bias_dtype = bias_arg.float_dtype();
    bias_arg.is_vector("n", n);
    params.bias = bias->data_ptr();
  }
  params.out_dtype = float_dtype(kOp, "out_dtype", out_dtype);
  Tensor out = new_tensor(a, {m, n}, out_dtype);
  params.out = out.data_ptr();
  params.out_stride = n;
  if (accelerator) {
    run_on(*accelerator, params, a);
  } else {
    raise_if_bad(gemm_int8::run(params, TorchParallel()));
  }
  return out;
}

std::tuple<Tensor, Tensor> pack(const Tensor& w) {
  const Argument w_arg{"pack_int8", "w", w};
  w_arg.has_dtype(ScalarType::Char);
  w_arg.is_2d("[n, k]");
  const int64_t n = w.size(0), k = w.size(1);
  Tensor data = new_tensor(w,
                           {int8_tile::tiles_n(n), int8_tile::tiles_k(k), int8_tile::kGroups,
                            int8_tile::kTileN, int8_tile::kGroupK},
                           ScalarType::Char);
  Tensor sums = new_tensor(w, {n}, ScalarType::Int);
  advise_huge_pages(data.data_ptr(), data.numel());  // one byte each
  raise_if_bad(gemm_int8::pack(static_cast<const int8_t*>(w.data_ptr()), n, k, w_arg.row_stride(),
                               static_cast<int8_t*>(data.data_ptr()),
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

std::tuple<Tensor, Tensor> pack_cuda(const Tensor&) {
  fail("pack_int8", "packs on the CPU only: move w there, and the packed weight back");
}
Tensor unpack_cuda(const Tensor&, int64_t, int64_t) {
  fail("unpack_int8", "unpacks on the CPU only: move data there");
}

std::string explain(int64_t m, int64_t n, int64_t k) {
  std::string text;
  raise_if_bad(gemm_int8::explain({m, n, k}, TorchParallel().threads(), text));
  return text;
}

}  // namespace

LAMINA_IMPL(CPU, m) {
  m.impl("gemm_int8", TORCH_BOX(&gemm));
  m.impl("pack_int8", TORCH_BOX(&pack));
  m.impl("unpack_int8", TORCH_BOX(&unpack));
}
LAMINA_IMPL(CUDA, m) {
  m.impl("gemm_int8", TORCH_BOX(&gemm));
  m.impl("pack_int8", TORCH_BOX(&pack_cuda));
  m.impl("unpack_int8", TORCH_BOX(&unpack_cuda));
}
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("explain_gemm_int8", TORCH_BOX(&explain));
  m.impl("explain_gemm_int8_cuda", TORCH_BOX(&explain_cuda));
}

}  // namespace lamina::interop
