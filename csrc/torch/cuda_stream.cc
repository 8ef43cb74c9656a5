#include "torch/cuda_stream.h"

#include <dlfcn.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "torch/interop.h"

namespace lamina::interop {
namespace {

using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);

// `import torch` loads libtorch_cuda with RTLD_LOCAL, so the loader does not resolve lamina's symbols in that
// library, not even weak symbols. RTLD_NOLOAD finds the loaded library and never loads another one. A failure is not
// remembered, because the library may be loaded later.
CurrentStream find_current_stream() {
  static std::atomic<CurrentStream> found = nullptr;
  CurrentStream function = found.load(std::memory_order_relaxed);
  if (function != nullptr) return function;
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr)
    throw std::runtime_error(
        "lamina: this process has no libtorch_cuda.so: torch was built without CUDA");
  function = reinterpret_cast<CurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  if (function == nullptr)
    throw std::runtime_error(
        "lamina: libtorch_cuda.so has no aoti_torch_get_current_cuda_stream; lamina needs torch >= "
        "2.11");
  found.store(function, std::memory_order_relaxed);
  return function;
}

int64_t stream_number(int64_t device) {
  return reinterpret_cast<int64_t>(current_cuda_stream(device));
}

}  // namespace

void* current_cuda_stream(int64_t device) {
  void* stream = nullptr;
  if (find_current_stream()(static_cast<int32_t>(device), &stream) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("lamina: torch has no current CUDA stream on device " +
                             std::to_string(device));
  return stream;
}

LAMINA_FRAGMENT(m) { m.def("current_cuda_stream(int device) -> int"); }
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("current_cuda_stream", TORCH_BOX(&stream_number));
}

}  // namespace lamina::interop
