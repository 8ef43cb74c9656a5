// quantize_int8 / avx2: body.h, vectorised by the compiler for this ISA.
#include "ops/quantize_int8/cpu/body.h"

namespace lamina::quantize_int8 {

extern constinit const CpuKernel quantize_int8_avx2 = make_kernel("quantize_int8_avx2", Isa::kAvx2);

}  // namespace lamina::quantize_int8
