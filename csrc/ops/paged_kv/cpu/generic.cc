// paged_kv / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/paged_kv/cpu/body.h"

namespace lamina::paged_kv {

extern constinit const CpuKernel paged_kv_generic = make_kernel("paged_kv_generic", Isa::kGeneric);

}  // namespace lamina::paged_kv
