// Where a call runs: on the CPU, on the CUDA device of its tensors or, in the test-only library, on the
// twin.
#pragma once

#include <initializer_list>
#include <optional>
#include <string_view>

#include "device/device_info.h"
#include "torch/interop.h"

namespace lamina::interop {

struct Accelerator {
  DeviceInfo device;
  void* stream;
  std::string_view kernel;  // the only one to choose from; empty: any
  std::optional<torch::stable::accelerator::DeviceGuard> guard;  // its device is the current one
};

// SMs that a call may occupy; None is INT_MAX.
int checked_sms(const char* op, std::optional<int64_t> max_sms);

// The device that a plan is asked for, present or not.
DeviceInfo described_device(const char* op, int64_t compute_capability, int64_t sm_count);

// Nothing for the CPU. Checks that all arguments are on the device of the first.
std::optional<Accelerator> accelerator_of(std::initializer_list<Argument> arguments);

}  // namespace lamina::interop
