// sample / avx2: body.h, vectorised by the compiler for this ISA.
#include "ops/sample/cpu/body.h"

namespace lamina::sample {

CpuKernel sample_avx2() { return make_kernel("sample_avx2", Isa::kAvx2); }

}  // namespace lamina::sample
