// quantize_int8 / avx512_vnni: body.h, vectorised by the compiler for this ISA.
#include "ops/quantize_int8/cpu/body.h"

namespace lamina::quantize_int8 {

extern constinit const CpuKernel quantize_int8_avx512_vnni =
    make_kernel("quantize_int8_avx512_vnni", Isa::kAvx512Vnni);

}  // namespace lamina::quantize_int8
