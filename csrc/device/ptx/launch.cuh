// The entry point of all kernels, and its launch. Emulator: emu/launch.h
#pragma once

#include <type_traits>

#include "base/status.h"
#include "device/launch_shape.h"
#include "device/types.h"

namespace lamina::dev {
namespace detail {

inline constexpr int kMaxDevices = 64;

// Without __grid_constant__ a kernel that takes the address of its arguments copies them to local
// memory first.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    entry(const __grid_constant__ typename Kernel::Args args) {
  Kernel::run(args);
}

// Puts a grid on `stream`, a cudaStream_t of the current device. granted: the limit of the kernel's dynamic shared memory on
// each device, which launches raise.
Status launch(const char* name, const void* kernel, int (&granted)[kMaxDevices],
              const LaunchShape& shape, int threads, void* stream, void** arguments);

}  // namespace detail

// Puts a grid of `shape` on `stream`, a cudaStream_t of the current device. Does not wait, so the Status does not
// report errors while the kernel runs.
template <class Kernel>
Status launch(const LaunchShape& shape, void* stream, const typename Kernel::Args& args) {
  static_assert(std::is_trivially_copyable_v<typename Kernel::Args>);
  static_assert(Kernel::kThreads >= 1 && Kernel::kThreads <= kMaxThreads);
  static int granted[detail::kMaxDevices] = {};
  void* arguments[] = {const_cast<typename Kernel::Args*>(&args)};
  return detail::launch(Kernel::kName, reinterpret_cast<const void*>(&detail::entry<Kernel>),
                        granted, shape, Kernel::kThreads, stream, arguments);
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
