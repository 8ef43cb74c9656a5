// The choice among the kernels of an op that has one kernel for an instruction set. Their records are constant data, because
// every machine reads them, and code in the file of a kernel may need an instruction set that the machine lacks.
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
