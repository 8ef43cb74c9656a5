// rms_norm / avx512_vnni: body.h, vectorised by the compiler for this ISA.
#include "ops/rms_norm/cpu/body.h"

namespace lamina::rms_norm {

extern constinit const CpuKernel rms_norm_avx512_vnni =
    make_kernel("rms_norm_avx512_vnni", Isa::kAvx512Vnni);

}  // namespace lamina::rms_norm
