// The device on which a call runs: the CPU, the CUDA device of its tensors or, in the test-only library, the emulator.
#pragma once

#include <initializer_list>
#include <optional>
#include <span>
#include <string_view>

#include "device/device_info.h"
#include "torch/interop.h"

namespace lamina::interop {

struct Accelerator {
  DeviceInfo device;
  void* stream;
  std::string_view kernel;                                       // the forced kernel; empty: any
  std::optional<torch::stable::accelerator::DeviceGuard> guard;  // makes the device current
};

// The SMs that a call may occupy; INT_MAX for None.
int checked_sms(const char* op, std::optional<int64_t> max_sms);

// The device for which a caller asks for a plan. The machine need not have it.
DeviceInfo described_device(const char* op, int64_t compute_capability, int64_t sm_count);

// The device of a call; nothing for the CPU. Checks that all arguments are on the device of the first argument.
std::optional<Accelerator> accelerator_of(std::initializer_list<Argument> arguments,
                                          std::span<const Argument> more = {});

}  // namespace lamina::interop
