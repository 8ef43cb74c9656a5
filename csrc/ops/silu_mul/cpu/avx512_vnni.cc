// silu_mul / avx512_vnni: body.h, vectorised by the compiler for this ISA.
#include "ops/silu_mul/cpu/body.h"

namespace lamina::silu_mul {

extern constinit const CpuKernel silu_mul_avx512_vnni =
    make_kernel("silu_mul_avx512_vnni", Isa::kAvx512Vnni);

}  // namespace lamina::silu_mul
