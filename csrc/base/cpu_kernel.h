// The choice among the kernels of an op that has one kernel for an instruction set.
#pragma once

#include <vector>

#include "base/cpu_features.h"

namespace lamina {

// The last kernel that `isa` can run. The kernels ascend by `isa`, as the rows of kernels.inc do; the first is generic.
template <class Kernel>
const Kernel& choose_kernel(const std::vector<Kernel>& kernels, Isa isa) {
  const Kernel* chosen = &kernels.front();
  for (const Kernel& kernel : kernels)
    if (kernel.isa <= isa) chosen = &kernel;
  return *chosen;
}

}  // namespace lamina
