// rms_norm / avx2: body.h, vectorised by the compiler for this ISA.
#include "ops/rms_norm/cpu/body.h"

namespace lamina::rms_norm {

extern constinit const CpuKernel rms_norm_avx2 = make_kernel("rms_norm_avx2", Isa::kAvx2);

}  // namespace lamina::rms_norm
