// The AVX-512 intrinsics: the compiler's own, or with LAMINA_EMULATE those of SIMDe, so that tests
// run the AVX-512 kernels on machines without them. Only files under ops/*/cpu include this.
#pragma once

#if defined(LAMINA_EMULATE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif
