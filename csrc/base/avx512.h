// The AVX-512 intrinsics of the compiler or, with LAMINA_USE_SIMDE, SIMDe's, so that tests run the AVX-512 kernels on
// machines without AVX-512. Only the CPU kernels include this file.
#pragma once

#include <cstdint>

#if defined(LAMINA_USE_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns about this header itself
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace lamina {
namespace {

inline __m512 to_floats(__m512i integers) {
#if defined(LAMINA_USE_SIMDE)
  alignas(64) int32_t from[16];  // SIMDe has no such conversion
  alignas(64) float to[16];
  _mm512_store_si512(from, integers);
  for (int i = 0; i < 16; ++i) to[i] = static_cast<float>(from[i]);
  return _mm512_load_ps(to);
#else
  return _mm512_cvtepi32_ps(integers);
#endif
}

}  // namespace
}  // namespace lamina
