#include "kv/error_word.h"

#include <bit>

#include "torch/interop.h"

namespace lamina::interop {
namespace {

// The text of the first error that kernels have recorded on a CUDA device since the last call; empty without one.
std::string take_kv_error([[maybe_unused]] int64_t device) {
#if defined(LAMINA_WITH_CUDA) || defined(LAMINA_EMULATOR)
#if !defined(LAMINA_EMULATOR)
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
#endif
  dev::Mail mail{};
  raise_if_bad(dev::take_mail(mail));
  return kv::error_text(std::bit_cast<kv::ErrorWord>(mail));
#else
  fail("take_kv_error", "device = ", device, "; lamina is built without CUDA");
#endif
}

}  // namespace

LAMINA_FRAGMENT(m) { m.def("take_kv_error(int device) -> str"); }
LAMINA_IMPL(CompositeExplicitAutograd, m) { m.impl("take_kv_error", TORCH_BOX(&take_kv_error)); }

}  // namespace lamina::interop
