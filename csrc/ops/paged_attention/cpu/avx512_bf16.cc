// paged_attention / avx512_bf16: bf16 dot products for bf16 queries and caches, integer ones for int8 caches, the others
// in f32.
#include "ops/paged_attention/cpu/avx512.h"
#include "ops/paged_attention/cpu/bf16_product.h"

namespace lamina::paged_attention {
namespace {

struct Avx512Bf16 : Avx512 {
  static F dot_bf16(F sum, I a, I b) { return lamina::dot_bf16(sum, a, b); }
  static I to_bf16(F a, F b) { return lamina::to_bf16(a, b); }
};

void run_part(const Call& call, int64_t part) {
  const Params& p = call.params;
  if (p.k.dtype == kv::CacheDType::kI8) return compute<Avx512, Int8Product<Avx512>>(call, part);
  if (p.k.dtype == kv::CacheDType::kBF16 && p.q_dtype == DType::kBF16)
    return compute<Avx512Bf16, Bf16Product<Avx512Bf16>>(call, part);
  compute<Avx512>(call, part);
}

}  // namespace

extern constinit const CpuKernel paged_attention_avx512_bf16 = {"paged_attention_avx512_bf16",
                                                                Isa::kAvx512Bf16, &run_part};

}  // namespace lamina::paged_attention
