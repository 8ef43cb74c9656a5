// quantize_int8 / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/quantize_int8/cpu/body.h"

namespace lamina::quantize_int8 {

extern constinit const CpuKernel quantize_int8_generic =
    make_kernel("quantize_int8_generic", Isa::kGeneric);

}  // namespace lamina::quantize_int8
