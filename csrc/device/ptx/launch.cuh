// Kernels as types: one entry point for all, and its launch. Twin: emu/launch.h
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <mutex>
#include <type_traits>

#include "base/status.h"
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

inline constexpr int kDefaultSmemBytes = 48 * 1024;  // what a block gets unasked, on every GPU
inline constexpr int kMaxDevices = 64;
inline constexpr int kMaxGridYZ = 65535;

// The dynamic shared memory that one kernel was allowed, by device. Only ever raised: a launch
// cannot take from another what it was just granted.
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
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error == cudaSuccess) granted.store(bytes, std::memory_order_release);
    return error;
  }

 private:
  std::mutex mutex_;
  std::array<std::atomic<int>, kMaxDevices> granted_{};
};

// An error that we report must not be found again by whoever asks CUDA next.
inline Status launch_error(const char* name, cudaError_t error) {
  (void)cudaGetLastError();
  return Status::error(name, ": ", cudaGetErrorString(error));
}

}  // namespace detail

// Puts a grid of `shape` on `stream`, a cudaStream_t of the current device. Does not wait: what
// goes wrong while the kernel runs is not in the Status.
template <class Kernel>
Status launch(const LaunchShape& shape, void* stream, const typename Kernel::Args& args) {
  static_assert(std::is_trivially_copyable_v<typename Kernel::Args>);
  const Index3 grid = shape.grid;
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0 || grid.y > detail::kMaxGridYZ ||
      grid.z > detail::kMaxGridYZ)
    return Status::error(Kernel::kName, ": a grid of ", grid.x, " x ", grid.y, " x ", grid.z,
                         " blocks; 1 to 2^31 - 1 x 65535 x 65535 are possible");
  const void* const kernel = reinterpret_cast<const void*>(&detail::entry<Kernel>);
  if (shape.smem_bytes > detail::kDefaultSmemBytes) {
    static detail::SmemLimit limit;
    if (cudaError_t error = limit.raise(kernel, shape.smem_bytes); error != cudaSuccess)
      return detail::launch_error(Kernel::kName, error);
  }
  void* arguments[] = {const_cast<typename Kernel::Args*>(&args)};
  const cudaError_t error =
      cudaLaunchKernel(kernel,
                       dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                            static_cast<unsigned>(grid.z)),
                       dim3(static_cast<unsigned>(Kernel::kThreads)), arguments,
                       static_cast<size_t>(shape.smem_bytes), static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) return detail::launch_error(Kernel::kName, error);
  return Status::ok();
}

}  // namespace lamina::dev
