// sample / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/sample/cpu/body.h"

namespace lamina::sample {

CpuKernel sample_generic() { return make_kernel("sample_generic", Isa::kGeneric); }

}  // namespace lamina::sample
