#include <cuda_runtime_api.h>

#include "base/memo.h"
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
      (void)cudaGetLastError();  // clears the error, which the Status reports
      return Status::device_error("device_info: device ", device, ": ", cudaGetErrorString(error));
    }
  info = {major.value * 10 + minor.value, sms.value, smem.value, l2.value};
  return Status::ok();
}

// Fails if the driver is older than the CUDA runtime that lamina is linked with.
Status count_devices(int& count) {
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return Status::ok();
  (void)cudaGetLastError();
  return Status::device_error("device_info: ", cudaGetErrorString(error),
                              "; lamina's runtime is CUDA ", CUDART_VERSION / 1000, ".",
                              CUDART_VERSION % 1000 / 10);
}

}  // namespace

int device_count() {
  int count = 0;
  return count_devices(count).is_ok() ? count : 0;
}

Status device_info(int device, DeviceInfo& info) {
  const auto key = memo_key(device);
  static thread_local Memo<key.size(), DeviceInfo, 16> known(host_work().devices);
  if (const DeviceInfo* found = known.find(key)) {
    info = *found;
    return Status::ok();
  }
  int count = 0;
  if (Status status = count_devices(count); !status.is_ok()) return status;
  if (device < 0 || device >= count)
    return Status::error("device_info: device = ", device, "; there are ", count, " CUDA devices");
  if (Status status = query(device, info); !status.is_ok()) return status;
  known.keep(key, info);
  return Status::ok();
}

}  // namespace lamina
