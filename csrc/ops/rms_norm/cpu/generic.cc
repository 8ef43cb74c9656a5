// rms_norm / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/rms_norm/cpu/body.h"

namespace lamina::rms_norm {

extern constinit const CpuKernel rms_norm_generic = make_kernel("rms_norm_generic", Isa::kGeneric);

}  // namespace lamina::rms_norm
