// merge_attention_states / generic: body.h, vectorised by the compiler for this ISA.
#include "ops/merge_attention_states/cpu/body.h"

namespace lamina::merge_attention_states {

extern constinit const CpuKernel merge_attention_states_generic =
    make_kernel("merge_attention_states_generic", Isa::kGeneric);

}  // namespace lamina::merge_attention_states
