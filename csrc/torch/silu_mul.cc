#include "ops/silu_mul/silu_mul.h"

#include <climits>
#include <tuple>

#include "torch/accelerator.h"
#include "torch/int8_rows.h"
#include "torch/interop.h"
#include "torch/ops.h"

namespace lamina::interop {
namespace {

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
void run_on(const Accelerator& accelerator, const silu_mul::Params& params) {
  raise_if_bad(silu_mul::run_cuda(params, INT_MAX, accelerator.stream));
}
#else
[[noreturn]] void run_on(const Accelerator&, const silu_mul::Params&) {
  fail("silu_mul", "no CUDA kernel is built");
}
#endif

// x is [m, 2 n], the gate beside `up`; or, with `up`, the gate [m, n].
std::optional<Accelerator> read(const char* op, const Tensor& x, const std::optional<Tensor>& up,
                                silu_mul::Params& params) {
  const Argument x_arg{op, "x", x}, up_arg{op, "up", up ? *up : x};
  x_arg.is_2d(up ? "[m, n]" : "[m, 2 n]");
  params.dtype = x_arg.float_dtype();
  params.m = x.size(0);
  params.gate = x.data_ptr();
  params.gate_stride = x_arg.row_stride();
  if (up) {
    params.n = x.size(1);
    up_arg.has_dtype(x.scalar_type());
    up_arg.is_2d("[m, n]");
    up_arg.has_shape("[m, n]", params.m, params.n);
    params.up = up->data_ptr();
    params.up_stride = up_arg.row_stride();
  } else {
    require(x.size(1) % 2 == 0, op, "x must be 2-D [m, 2 n] without up, got ", ShapeText{x});
    params.n = x.size(1) / 2;
    params.up = static_cast<const char*>(params.gate) + params.n * size_bytes(params.dtype);
    params.up_stride = params.gate_stride;
  }
  return accelerator_of({x_arg, up_arg});
}

void run(const std::optional<Accelerator>& accelerator, const silu_mul::Params& params) {
  if (accelerator) {
    run_on(*accelerator, params);
  } else {
    raise_if_bad(silu_mul::run(params, TorchParallel()));
  }
}

}  // namespace

Tensor silu_and_multiply(const Tensor& x, std::optional<Tensor> up) {
  silu_mul::Params params;
  const std::optional<Accelerator> accelerator = read("silu_mul", x, up, params);
  Tensor out = new_tensor(x, {params.m, params.n}, x.scalar_type());
  params.out = out.data_ptr();
  run(accelerator, params);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> silu_and_multiply_to_int8(const Tensor& x,
                                                             std::optional<Tensor> up,
                                                             bool symmetric) {
  silu_mul::Params params;
  const std::optional<Accelerator> accelerator = read("silu_mul_int8", x, up, params);
  const Int8Tensors to(x, params.m, params.n, symmetric);
  params.quantized = to.rows();
  run(accelerator, params);
  return {to.q, to.scale, to.zero_point};
}

namespace {

std::string explain(int64_t m, int64_t n) {
  std::string text;
  raise_if_bad(silu_mul::explain(m, n, TorchParallel().threads(), text));
  return text;
}

template <class Implementations>
void implement(Implementations& m) {
  m.impl("silu_mul", TORCH_BOX(&silu_and_multiply));
  m.impl("silu_mul_int8", TORCH_BOX(&silu_and_multiply_to_int8));
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def("silu_mul(Tensor x, Tensor? up=None) -> Tensor");
  m.def(
      "silu_mul_int8(Tensor x, Tensor? up=None, bool symmetric=True) -> (Tensor q, Tensor scale, "
      "Tensor zero_point)");
  m.def("explain_silu_mul(int m, int n) -> str");
}
LAMINA_IMPL(CPU, m) { implement(m); }
LAMINA_IMPL(CUDA, m) { implement(m); }
LAMINA_IMPL(CompositeExplicitAutograd, m) { m.impl("explain_silu_mul", TORCH_BOX(&explain)); }

}  // namespace lamina::interop
