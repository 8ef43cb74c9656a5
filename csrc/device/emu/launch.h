// Emulates ptx/launch.cuh: runs the grid to its end before it returns. In a launch with overlaps_previous, accesses
// before wait_for_previous() count as concurrent with the earlier launches. The stream is not used.
#pragma once

#include "device/emu/executor.h"
#include "device/launch_shape.h"

namespace lamina::dev {

template <class Kernel>
Status launch(const LaunchShape& shape, void* /*stream*/, const typename Kernel::Args& args) {
  static_assert(Kernel::kThreads >= 1 && Kernel::kThreads <= kMaxThreads);
  return emu::run_grid(
      Kernel::kName, shape, Kernel::kThreads,
      [](const void* arguments) {
        Kernel::run(*static_cast<const typename Kernel::Args*>(arguments));
      },
      &args);
}

inline void launch_dependents() {}
inline void wait_for_previous() { emu::note_wait_for_previous(); }

}  // namespace lamina::dev
