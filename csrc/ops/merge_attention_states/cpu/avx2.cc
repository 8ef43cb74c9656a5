// merge_attention_states / avx2: body.h, vectorised by the compiler for this ISA.
#include "ops/merge_attention_states/cpu/body.h"

namespace lamina::merge_attention_states {

extern constinit const CpuKernel merge_attention_states_avx2 =
    make_kernel("merge_attention_states_avx2", Isa::kAvx2);

}  // namespace lamina::merge_attention_states
