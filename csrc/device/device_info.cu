#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

#include "device/device_info.h"

namespace lamina {
namespace {

Status query(int device, DeviceInfo& info) {
  struct Attribute {
    cudaDeviceAttr name;
    int value;
  } major{cudaDevAttrComputeCapabilityMajor, 0}, minor{cudaDevAttrComputeCapabilityMinor, 0},
      sms{cudaDevAttrMultiProcessorCount, 0}, smem{cudaDevAttrMaxSharedMemoryPerBlockOptin, 0},
      l2{cudaDevAttrL2CacheSize, 0};
  for (Attribute* attribute : {&major, &minor, &sms, &smem, &l2})
    if (cudaError_t error = cudaDeviceGetAttribute(&attribute->value, attribute->name, device);
        error != cudaSuccess) {
      (void)cudaGetLastError();  // reported here, not to whoever asks CUDA next
      return Status::error("device_info: CUDA device ", device, ": ", cudaGetErrorString(error));
    }
  info = {major.value * 10 + minor.value, sms.value, smem.value, l2.value};
  return Status::ok();
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  (void)cudaGetLastError();
  return 0;
}

Status device_info(int device, DeviceInfo& info) {
  static std::mutex mutex;
  static std::vector<DeviceInfo> known(static_cast<size_t>(device_count()));
  if (device < 0 || device >= static_cast<int>(known.size()))
    return Status::error("device_info: device = ", device, "; there are ", known.size(),
                         " CUDA devices");
  const std::lock_guard<std::mutex> lock(mutex);
  DeviceInfo& entry = known[static_cast<size_t>(device)];
  if (entry.sm_count == 0)
    if (Status status = query(device, entry); !status.is_ok()) return status;
  info = entry;
  return Status::ok();
}

}  // namespace lamina
