// silu_mul / avx2: body.h, vectorised by the compiler for this ISA.
#include "ops/silu_mul/cpu/body.h"

namespace lamina::silu_mul {

extern constinit const CpuKernel silu_mul_avx2 = make_kernel("silu_mul_avx2", Isa::kAvx2);

}  // namespace lamina::silu_mul
