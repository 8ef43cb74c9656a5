// paged_attention / avx512_vnni: int8 caches with integer dot products, the others in f32.
#include "ops/paged_attention/cpu/avx512.h"

namespace lamina::paged_attention {

namespace {

void run_part(const Call& call, int64_t part) {
  if (call.params.k.dtype == kv::CacheDType::kI8)
    return compute<Avx512, Int8Product<Avx512>>(call, part);
  compute<Avx512>(call, part);
}

}  // namespace

extern constinit const CpuKernel paged_attention_avx512_vnni = {"paged_attention_avx512_vnni",
                                                                Isa::kAvx512Vnni, &run_part};

}  // namespace lamina::paged_attention
