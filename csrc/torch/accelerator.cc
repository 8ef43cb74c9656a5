#include "torch/accelerator.h"

#include <algorithm>
#include <climits>
#include <utility>

#include "torch/cuda_stream.h"

#if defined(LAMINA_EMULATOR)
#include "device/emu/executor.h"
#endif

namespace lamina::interop {
namespace {

// Prints "cuda:1".
struct DeviceText {
  const Tensor& tensor;
};
std::ostream& operator<<(std::ostream& out, const DeviceText& device) {
  const Tensor& tensor = device.tensor;
  if (tensor.is_cpu()) return out << "the CPU";
  return out << (tensor.is_cuda() ? "cuda:" : "device ") << tensor.device().index();
}

// For tests and benchmarks, one thread at a time. Returns the name that was set before.
std::string only_kernel;
std::string set_cuda_kernel(std::string name) {
  return std::exchange(only_kernel, std::move(name));
}

}  // namespace

int checked_sms(const char* op, std::optional<int64_t> max_sms) {
  require(!max_sms || *max_sms >= 1, op, "max_sms = ", max_sms.value_or(0),
          "; must be at least 1, or None for all");
  return static_cast<int>(std::min<int64_t>(max_sms.value_or(INT_MAX), INT_MAX));
}

DeviceInfo described_device(const char* op, int64_t compute_capability, int64_t sm_count) {
  require(compute_capability >= 0 && compute_capability < 1000, op,
          "compute_capability = ", compute_capability, "; 80 stands for 8.0");
  require(sm_count > 0 && sm_count < 100000, op, "sm_count = ", sm_count,
          " must be between 1 and 99999");
  return typical_device(static_cast<int>(compute_capability), static_cast<int>(sm_count));
}

std::optional<Accelerator> accelerator_of(std::initializer_list<Argument> arguments,
                                          std::span<const Argument> more) {
  const Argument& first = *arguments.begin();
  const auto device = first.tensor.device();
  const auto is_there = [&](const Argument& other) {
    require(&other.tensor == &first.tensor || other.tensor.device() == device, other.op, other.name,
            " is on ", DeviceText{other.tensor}, ", ", first.name, " on ", DeviceText{first.tensor},
            "; both must be on one device");
  };
  std::ranges::for_each(arguments, is_there);
  std::ranges::for_each(more, is_there);
#if defined(LAMINA_EMULATOR)
  if (dev::emu::device().compute_capability == 0) return std::nullopt;
  return Accelerator{dev::emu::device(), nullptr, only_kernel, std::nullopt};
#else
  if (!first.tensor.is_cuda()) return std::nullopt;
#if defined(LAMINA_WITH_CUDA)
  const int32_t index = first.tensor.device().index();
  std::optional<Accelerator> accelerator;
  accelerator.emplace();
  raise_if_bad(device_info(index, accelerator->device));
  accelerator->guard.emplace(index);
  accelerator->kernel = only_kernel;
  accelerator->stream = current_cuda_stream(index);
  return accelerator;
#else
  fail(first.op, "no CUDA kernel is built; move ", first.name, " to the CPU");
#endif
#endif
}

LAMINA_FRAGMENT(m) { m.def("set_cuda_kernel(str name) -> str"); }
LAMINA_IMPL(CompositeExplicitAutograd, m) {
  m.impl("set_cuda_kernel", TORCH_BOX(&set_cuda_kernel));
}

}  // namespace lamina::interop
