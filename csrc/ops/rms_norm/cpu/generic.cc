// rms_norm / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/rms_norm/cpu/body.h"

namespace lamina::rms_norm {

CpuKernel rms_norm_generic() { return make_kernel("rms_norm_generic", Isa::kGeneric); }

}  // namespace lamina::rms_norm
