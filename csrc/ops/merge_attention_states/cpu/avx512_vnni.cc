// merge_attention_states / avx512_vnni: body.h, vectorised by the compiler for this ISA.
#include "ops/merge_attention_states/cpu/body.h"

namespace lamina::merge_attention_states {

extern constinit const CpuKernel merge_attention_states_avx512_vnni =
    make_kernel("merge_attention_states_avx512_vnni", Isa::kAvx512Vnni);

}  // namespace lamina::merge_attention_states
