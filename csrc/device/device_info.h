// What planners need to know of a CUDA device. Queried once per device, never on the launch path.
#pragma once

#include <cstdint>

#include "base/status.h"

namespace lamina {

struct DeviceInfo {
  int compute_capability = 0;  // 80, 90
  int sm_count = 0;
  int64_t smem_per_block = 0;  // bytes, with opt-in
  int64_t l2_bytes = 0;
};

// Devices that the driver shows; 0 where there is none, or no driver.
int device_count();

Status device_info(int device, DeviceInfo& info);

}  // namespace lamina
