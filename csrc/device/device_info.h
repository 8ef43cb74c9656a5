// The attributes of a CUDA device that planners use. Each thread asks the driver once for each device.
#pragma once

#include <cstdint>

#include "base/memo_key.h"
#include "base/status.h"

namespace lamina {

struct DeviceInfo {
  int compute_capability = 0;  // 80, 90
  int sm_count = 0;
  int64_t smem_per_block = 0;  // bytes, the opt-in limit
  int64_t l2_bytes = 0;
};

inline auto key_of(const DeviceInfo& device) {
  const auto& [compute_capability, sm_count, smem_per_block, l2_bytes] = device;
  return memo_key(compute_capability, sm_count, smem_per_block, l2_bytes);
}

// A typical device of this compute capability, to plan for a device that the machine does not have.
constexpr DeviceInfo typical_device(int compute_capability, int sm_count) {
  const int kib = compute_capability == 80 || compute_capability == 87   ? 163
                  : compute_capability >= 90 && compute_capability < 120 ? 227
                                                                         : 99;
  return {compute_capability, sm_count, int64_t{kib} << 10, int64_t{50} << 20};
}

// The number of devices that the driver shows; 0 without a driver.
int device_count();

Status device_info(int device, DeviceInfo& info);

}  // namespace lamina
