// paged_kv / avx512_vnni: body.h, vectorised by the compiler for this ISA.
#include "ops/paged_kv/cpu/body.h"

namespace lamina::paged_kv {

extern constinit const CpuKernel paged_kv_avx512_vnni =
    make_kernel("paged_kv_avx512_vnni", Isa::kAvx512Vnni);

}  // namespace lamina::paged_kv
