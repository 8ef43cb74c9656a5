#include "ops/quantize_int8/quantize_int8.h"

#include <climits>
#include <tuple>

#include "torch/accelerator.h"
#include "torch/int8_rows.h"
#include "torch/interop.h"
#include "torch/ops.h"

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
#include "ops/quantize_int8/cuda/launch.h"
#endif

namespace lamina::interop {
namespace {

constexpr const char* kOp = "quantize_int8";

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
void run_on(const Accelerator& accelerator, const quantize_int8::Params& params) {
  raise_if_bad(quantize_int8::run_cuda(params, INT_MAX, accelerator.stream));
}
#else
[[noreturn]] void run_on(const Accelerator&, const quantize_int8::Params&) {
  fail(kOp, "no CUDA kernel is built");
}
#endif

}  // namespace

std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, std::optional<Tensor> scale,
                                            std::optional<Tensor> zero_point, bool symmetric) {
  const Argument x_arg{kOp, "x", x};
  x_arg.is_2d("[m, k]");
  const Argument scale_arg{kOp, "scale", scale ? *scale : x};
  const Argument zero_point_arg{kOp, "zero_point", zero_point ? *zero_point : x};
  quantize_int8::Params params;
  params.x_dtype = x_arg.float_dtype();
  params.m = x.size(0);
  params.k = x.size(1);
  params.x = x.data_ptr();
  params.x_stride = x_arg.row_stride();
  require(!zero_point || (scale && !symmetric), kOp,
          "zero_point was given; it is allowed only with scale and symmetric = False");
  require(!scale || symmetric || zero_point, kOp,
          "zero_point is missing; scale with symmetric = False needs one");
  if (scale)
    params.static_scale = broadcast<float>(scale_arg, ScalarType::Float, params.m, "[m, 1]");
  if (zero_point)
    params.static_zero_point =
        broadcast<int8_t>(zero_point_arg, ScalarType::Char, params.m, "[m, 1]");
  const std::optional<Accelerator> accelerator = accelerator_of({x_arg, scale_arg, zero_point_arg});

  const Int8Tensors to(x, params.m, params.k, symmetric);
  static_cast<Int8Rows&>(params) = to.rows();
  if (accelerator) {
    run_on(*accelerator, params);
  } else {
    raise_if_bad(quantize_int8::run(params, TorchParallel()));
  }
  return {to.q, to.scale, to.zero_point};
}

namespace {

std::string explain(int64_t m, int64_t k) {
  std::string text;
  raise_if_bad(quantize_int8::explain(m, k, TorchParallel().threads(), text));
  return text;
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "quantize_int8(Tensor x, Tensor? scale=None, Tensor? zero_point=None, bool symmetric=True) "
      "-> (Tensor q, Tensor scale, Tensor zero_point)");
  m.def("explain_quantize_int8(int m, int k) -> str");
}
LAMINA_IMPL(CPU, m) { m.impl("quantize_int8", TORCH_BOX(&quantize)); }
LAMINA_IMPL(CUDA, m) { m.impl("quantize_int8", TORCH_BOX(&quantize)); }
LAMINA_IMPL(CompositeExplicitAutograd, m) { m.impl("explain_quantize_int8", TORCH_BOX(&explain)); }

}  // namespace lamina::interop
