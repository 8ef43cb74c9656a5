// Conversion of f16 by F16C, where the file that includes this one is compiled for it. Each ISA compiles its own copy.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "base/numeric.h"
#include "base/unroll.h"

namespace lamina {
namespace {

// to[i] = sign * from[i] for as many elements as F16C converts at once, of `count`. Returns their number.
LAMINA_INLINE inline int convert_f16([[maybe_unused]] const F16* from, [[maybe_unused]] int count,
                                     [[maybe_unused]] float sign, [[maybe_unused]] float* to) {
  int done = 0;
#if defined(__F16C__)
  for (; done + 8 <= count; done += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + done));
    _mm256_storeu_ps(to + done, _mm256_mul_ps(_mm256_cvtph_ps(halves), _mm256_set1_ps(sign)));
  }
#endif
  return done;
}

}  // namespace
}  // namespace lamina
