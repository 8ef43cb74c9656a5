#include "ops/rms_norm/rms_norm.h"

#include <climits>
#include <tuple>

#include "torch/accelerator.h"
#include "torch/int8_rows.h"
#include "torch/interop.h"
#include "torch/ops.h"

namespace lamina::interop {
namespace {

#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
void run_on(const Accelerator& accelerator, const rms_norm::Params& params) {
  raise_if_bad(rms_norm::run_cuda(params, INT_MAX, accelerator.stream));
}
#else
[[noreturn]] void run_on(const Accelerator&, const rms_norm::Params&) {
  fail("rms_norm", "no CUDA kernel is built");
}
#endif

// The checks and the launch that both ops share.
class Call {
 public:
  Call(const char* op, const Tensor& x, const Tensor& weight, double eps,
       const std::optional<Tensor>& residual)
      : x_(x), has_residual_(residual.has_value()) {
    const Argument x_arg{op, "x", x}, weight_arg{op, "weight", weight};
    const Argument residual_arg{op, "residual", residual ? *residual : x};
    x_arg.is_2d("[m, n]");
    params_.dtype = x_arg.float_dtype();
    params_.m = x.size(0);
    params_.n = x.size(1);
    params_.x = x.data_ptr();
    params_.x_stride = x_arg.row_stride();
    weight_arg.has_dtype(x.scalar_type());
    weight_arg.is_vector("n", params_.n);
    params_.weight = weight.data_ptr();
    params_.eps = static_cast<float>(eps);
    if (residual) {
      residual_arg.has_dtype(x.scalar_type());
      residual_arg.is_2d("[m, n]");
      residual_arg.has_shape("[m, n]", params_.m, params_.n);
      params_.residual = residual->data_ptr();
      params_.residual_stride = residual_arg.row_stride();
    }
    raise_if_bad(rms_norm::check(op, params_));
    accelerator_ = accelerator_of({x_arg, weight_arg, residual_arg});
  }

  // The new residual; [0, n] without a residual.
  Tensor run(void* out, const Int8Rows& quantized) {
    Tensor new_residual =
        new_tensor(x_, {has_residual_ ? params_.m : 0, params_.n}, x_.scalar_type());
    params_.new_residual = new_residual.data_ptr();
    params_.out = out;
    params_.quantized = quantized;
    if (accelerator_) {
      run_on(*accelerator_, params_);
    } else {
      raise_if_bad(rms_norm::run(params_, TorchParallel()));
    }
    return new_residual;
  }

 private:
  const Tensor& x_;
  const bool has_residual_;  // whose data may be null where it has no elements
  rms_norm::Params params_;
  std::optional<Accelerator> accelerator_;
};

}  // namespace

std::tuple<Tensor, Tensor> normalize(const Tensor& x, const Tensor& weight, double eps,
                                     std::optional<Tensor> residual) {
  Call call("rms_norm", x, weight, eps, residual);
  Tensor out = new_tensor(x, {x.size(0), x.size(1)}, x.scalar_type());
  Tensor new_residual = call.run(out.data_ptr(), {});
  return {out, new_residual};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normalize_to_int8(const Tensor& x, const Tensor& weight,
                                                             double eps,
                                                             std::optional<Tensor> residual,
                                                             bool symmetric) {
  Call call("rms_norm_int8", x, weight, eps, residual);
  const Int8Tensors to(x, x.size(0), x.size(1), symmetric);
  Tensor new_residual = call.run(nullptr, to.rows());
  return {to.q, to.scale, to.zero_point, new_residual};
}

namespace {

std::string explain(int64_t m, int64_t n) {
  std::string text;
  raise_if_bad(rms_norm::explain(m, n, TorchParallel().threads(), text));
  return text;
}

template <class Implementations>
void implement(Implementations& m) {
  m.impl("rms_norm", TORCH_BOX(&normalize));
  m.impl("rms_norm_int8", TORCH_BOX(&normalize_to_int8));
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "rms_norm(Tensor x, Tensor weight, float eps=1e-06, Tensor? residual=None) -> (Tensor out, "
      "Tensor new_residual)");
  m.def(
      "rms_norm_int8(Tensor x, Tensor weight, float eps=1e-06, Tensor? residual=None, bool "
      "symmetric=True) -> (Tensor q, Tensor scale, Tensor zero_point, Tensor new_residual)");
  m.def("explain_rms_norm(int m, int n) -> str");
}
LAMINA_IMPL(CPU, m) { implement(m); }
LAMINA_IMPL(CUDA, m) { implement(m); }
LAMINA_IMPL(CompositeExplicitAutograd, m) { m.impl("explain_rms_norm", TORCH_BOX(&explain)); }

}  // namespace lamina::interop
