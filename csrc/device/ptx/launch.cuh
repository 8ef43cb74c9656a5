// The entry point of all kernels, and its launch. Emulator: emu/launch.h
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <mutex>
#include <type_traits>
#include <utility>

#include "base/status.h"
#include "device/launch_shape.h"
#include "device/types.h"

namespace lamina::dev {
namespace detail {

// Without __grid_constant__ a kernel that takes the address of its arguments copies them to local
// memory first.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    entry(const __grid_constant__ typename Kernel::Args args) {
  Kernel::run(args);
}

inline constexpr int kDefaultSmemBytes = 48 * 1024;  // the limit without opt-in, on every GPU
inline constexpr int kMaxDevices = 64;

// The limit of one kernel's dynamic shared memory on each device. The limit is only ever raised, so a launch cannot
// lower the limit that another launch has just raised.
class SmemLimit {
 public:
  cudaError_t raise(const void* kernel, int bytes) {
    int device = 0;
    if (cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
    if (device >= kMaxDevices) return cudaErrorInvalidDevice;
    std::atomic<int>& granted = granted_[static_cast<size_t>(device)];
    if (bytes <= granted.load(std::memory_order_acquire)) return cudaSuccess;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes <= granted.load(std::memory_order_relaxed)) return cudaSuccess;
    // A kernel that needs so much keeps its data there: L1 gets the least that is possible.
    for (const auto& [attribute, value] :
         {std::pair{cudaFuncAttributeMaxDynamicSharedMemorySize, bytes},
          std::pair{cudaFuncAttributePreferredSharedMemoryCarveout,
                    static_cast<int>(cudaSharedmemCarveoutMaxShared)}})
      if (cudaError_t error = cudaFuncSetAttribute(kernel, attribute, value); error != cudaSuccess)
        return error;
    granted.store(bytes, std::memory_order_release);
    return cudaSuccess;
  }

 private:
  std::mutex mutex_;
  std::array<std::atomic<int>, kMaxDevices> granted_{};
};

// The Status of a CUDA error. Clears the error, so that the next CUDA call does not report it again.
inline Status launch_error(const char* name, cudaError_t error) {
  (void)cudaGetLastError();
  return Status::device_error(name, ": ", cudaGetErrorString(error));
}

inline cudaError_t put(const void* kernel, const LaunchShape& shape, int threads, void* stream,
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

}  // namespace detail

// Puts a grid of `shape` on `stream`, a cudaStream_t of the current device. Does not wait, so the Status does not
// report errors while the kernel runs.
template <class Kernel>
Status launch(const LaunchShape& shape, void* stream, const typename Kernel::Args& args) {
  static_assert(std::is_trivially_copyable_v<typename Kernel::Args>);
  static_assert(Kernel::kThreads >= 1 && Kernel::kThreads <= kMaxThreads);
  if (Status status = check_shape(Kernel::kName, shape, Kernel::kThreads); !status.is_ok())
    return status;
  const void* const kernel = reinterpret_cast<const void*>(&detail::entry<Kernel>);
  if (shape.smem_bytes > detail::kDefaultSmemBytes) {
    static detail::SmemLimit limit;
    if (cudaError_t error = limit.raise(kernel, shape.smem_bytes); error != cudaSuccess)
      return detail::launch_error(Kernel::kName, error);
  }
  void* arguments[] = {const_cast<typename Kernel::Args*>(&args)};
  const cudaError_t error = detail::put(kernel, shape, Kernel::kThreads, stream, arguments);
  if (error != cudaSuccess) return detail::launch_error(Kernel::kName, error);
  return Status::ok();
}

// griddepcontrol.launch_dependents;                                       PTX ISA 7.8, sm_90
// When all blocks have called it or ended, the next kernel on the stream may start, if its launch has
// overlaps_previous. That kernel may not yet read what this kernel writes. Before sm_90 no launch overlaps, and the
// function does nothing.
LAMINA_DEVICE void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// griddepcontrol.wait;                                                    PTX ISA 7.8, sm_90
// Waits until the kernels before this one on the stream have ended and their writes are visible. A kernel whose
// launch has overlaps_previous calls it before it touches memory that those kernels touch. Before sm_90 the function
// does nothing.
LAMINA_DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace lamina::dev
