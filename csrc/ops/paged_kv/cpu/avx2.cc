// paged_kv / avx2: body.h, vectorised by the compiler for this ISA.
#include "ops/paged_kv/cpu/body.h"

namespace lamina::paged_kv {

extern constinit const CpuKernel paged_kv_avx2 = make_kernel("paged_kv_avx2", Isa::kAvx2);

}  // namespace lamina::paged_kv
