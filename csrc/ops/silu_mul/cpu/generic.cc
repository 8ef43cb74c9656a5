// silu_mul / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/silu_mul/cpu/body.h"

namespace lamina::silu_mul {

extern constinit const CpuKernel silu_mul_generic = make_kernel("silu_mul_generic", Isa::kGeneric);

}  // namespace lamina::silu_mul
