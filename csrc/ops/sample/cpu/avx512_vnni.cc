// sample / avx512_vnni: body.h, vectorised by the compiler for this ISA.
#include "ops/sample/cpu/body.h"

namespace lamina::sample {

extern constinit const CpuKernel sample_avx512_vnni =
    make_kernel("sample_avx512_vnni", Isa::kAvx512Vnni);

}  // namespace lamina::sample
