// sample / avx2: body.h, vectorised by the compiler for this ISA.
#include "ops/sample/cpu/body.h"

namespace lamina::sample {

extern constinit const CpuKernel sample_avx2 = make_kernel("sample_avx2", Isa::kAvx2);

}  // namespace lamina::sample
