#include "ops/quantize_int8/quantize_int8.h"

#include <tuple>

#include "torch/interop.h"

namespace lamina::interop {
namespace {

constexpr const char* kOp = "quantize_int8";

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, std::optional<Tensor> scale,
                                            std::optional<Tensor> zero_point, bool symmetric) {
  const Argument x_arg{kOp, "x", x};
  x_arg.is_2d("[m, k]");
  quantize_int8::Params params;
  params.x_dtype = x_arg.float_dtype();
  params.m = x.size(0);
  params.k = x.size(1);
  params.x = x.data_ptr();
  params.x_stride = x_arg.row_stride();
  params.symmetric = symmetric;
  require(!zero_point || (scale && !symmetric), kOp,
          "zero_point was given; it is allowed only with scale and symmetric = False");
  require(!scale || symmetric || zero_point, kOp,
          "zero_point is missing; scale with symmetric = False needs one");
  if (scale)
    params.static_scale =
        broadcast<float>({kOp, "scale", *scale}, ScalarType::Float, params.m, "[m, 1]");
  if (zero_point)
    params.static_zero_point =
        broadcast<int8_t>({kOp, "zero_point", *zero_point}, ScalarType::Char, params.m, "[m, 1]");

  Tensor q = new_tensor(x, {params.m, params.k}, ScalarType::Char);
  Tensor out_scale = new_tensor(x, {params.m, 1}, ScalarType::Float);
  Tensor out_zero_point = new_tensor(x, {symmetric ? 0 : params.m, 1}, ScalarType::Char);
  params.q = static_cast<int8_t*>(q.data_ptr());
  params.scale = static_cast<float*>(out_scale.data_ptr());
  params.zero_point = static_cast<int8_t*>(out_zero_point.data_ptr());
  raise_if_bad(quantize_int8::run(params, TorchParallel()));
  return {q, out_scale, out_zero_point};
}

std::tuple<Tensor, Tensor, Tensor> quantize_cuda(const Tensor&, std::optional<Tensor>,
                                                 std::optional<Tensor>, bool) {
  fail(kOp, "no CUDA kernel is built; move x to the CPU");
}

std::string explain(int64_t m, int64_t k) {
  std::string text;
  raise_if_bad(quantize_int8::explain(m, k, TorchParallel().threads(), text));
  return text;
}

}  // namespace

LAMINA_IMPL(CPU, m) { m.impl("quantize_int8", TORCH_BOX(&quantize)); }
LAMINA_IMPL(CUDA, m) { m.impl("quantize_int8", TORCH_BOX(&quantize_cuda)); }
LAMINA_IMPL(CompositeExplicitAutograd, m) { m.impl("explain_quantize_int8", TORCH_BOX(&explain)); }

}  // namespace lamina::interop
