// sample / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/sample/cpu/body.h"

namespace lamina::sample {

extern constinit const CpuKernel sample_generic = make_kernel("sample_generic", Isa::kGeneric);

}  // namespace lamina::sample
