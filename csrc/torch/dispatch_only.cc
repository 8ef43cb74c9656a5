// An op that does nothing, in the test-only library: bench/host_time.py measures torch's own cost of a call with it.
#include <optional>
#include <string>

#include "torch/interop.h"

#if defined(LAMINA_EMULATOR)

namespace lamina::interop {
namespace {

// Takes the arguments of gemm_int8, reads none of them and returns a.
Tensor dispatch_only(const Tensor& a, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     std::optional<Tensor>, std::optional<Tensor>, ScalarType,
                     std::optional<std::string>, std::optional<Tensor>, std::optional<Tensor>,
                     std::optional<int64_t>) {
  return a;
}

}  // namespace

LAMINA_FRAGMENT(m) {
  m.def(
      "dispatch_only(Tensor(a) a, Tensor w, Tensor w_sums, Tensor a_scale, Tensor w_scale, Tensor? "
      "a_zero_point=None, Tensor? bias=None, ScalarType out_dtype=float, str? activation=None, "
      "Tensor? gate=None, Tensor? residual=None, int? max_sms=None) -> Tensor(a)");
}
LAMINA_IMPL(CPU, m) { m.impl("dispatch_only", TORCH_BOX(&dispatch_only)); }

}  // namespace lamina::interop

#endif
