#include <cuda_runtime_api.h>

#include <atomic>
#include <mutex>
#include <utility>

#include "device/ptx/launch.cuh"

namespace lamina::dev::detail {
namespace {

constexpr int kDefaultSmemBytes = 48 * 1024;  // the limit without opt-in, on every GPU

std::mutex raising;

// The limit is only ever raised, so a launch cannot lower the limit that another launch has just raised.
cudaError_t raise_smem_limit(const void* kernel, int (&granted)[kMaxDevices], int bytes) {
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  if (device >= kMaxDevices) return cudaErrorInvalidDevice;
  const std::atomic_ref<int> limit(granted[device]);
  if (bytes <= limit.load(std::memory_order_acquire)) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(raising);
  if (bytes <= limit.load(std::memory_order_relaxed)) return cudaSuccess;
  // A kernel that needs so much keeps its data there: L1 gets the least that is possible.
  for (const auto& [attribute, value] :
       {std::pair{cudaFuncAttributeMaxDynamicSharedMemorySize, bytes},
        std::pair{cudaFuncAttributePreferredSharedMemoryCarveout,
                  static_cast<int>(cudaSharedmemCarveoutMaxShared)}})
    if (cudaError_t error = cudaFuncSetAttribute(kernel, attribute, value); error != cudaSuccess)
      return error;
  limit.store(bytes, std::memory_order_release);
  return cudaSuccess;
}

cudaError_t put(const void* kernel, const LaunchShape& shape, int threads, void* stream,
                void** arguments) {
  const Index3 grid = shape.grid;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.smem_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  if (shape.cluster == 1 && !shape.overlaps_previous)
    return cudaLaunchKernel(kernel, config.gridDim, config.blockDim, arguments,
                            config.dynamicSmemBytes, config.stream);
  cudaLaunchAttribute attributes[2];
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  if (shape.overlaps_previous) {
    cudaLaunchAttribute& overlap = attributes[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelExC(&config, kernel, arguments);
}

// Clears the error, so that the next CUDA call does not report it again.
Status failed(const char* name, cudaError_t error) {
  (void)cudaGetLastError();
  return Status::device_error(name, ": ", cudaGetErrorString(error));
}

}  // namespace

Status launch(const char* name, const void* kernel, int (&granted)[kMaxDevices],
              const LaunchShape& shape, int threads, void* stream, void** arguments) {
  if (Status status = check_shape(name, shape, threads); !status.is_ok()) return status;
  if (shape.smem_bytes > kDefaultSmemBytes)
    if (cudaError_t error = raise_smem_limit(kernel, granted, shape.smem_bytes);
        error != cudaSuccess)
      return failed(name, error);
  const cudaError_t error = put(kernel, shape, threads, stream, arguments);
  return error == cudaSuccess ? Status::ok() : failed(name, error);
}

}  // namespace lamina::dev::detail
