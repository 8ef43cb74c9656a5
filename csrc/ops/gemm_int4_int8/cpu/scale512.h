// Adds the scaled sums of a group to its k chunk with AVX-512. Each ISA compiles its own copy:
// gemm/cpu/int8_nest.h says why.
#pragma once

#include "base/avx512.h"
#include "ops/gemm_int4_int8/cpu/body.h"

namespace lamina::gemm_int4_int8 {
namespace {

// For sixteen columns. With symmetric codes, `sum` has the zero points (8) subtracted already.
template <Scaling kScaling>
LAMINA_INLINE inline void add_group(__m512i sum, const float* scale, const float* zero_point,
                                    int32_t a_sum, float* y) {
  __m512 x = to_floats(sum);
  if constexpr (kScaling == Scaling::kZeroPoints)
    x = _mm512_fnmadd_ps(_mm512_loadu_ps(zero_point), _mm512_set1_ps(static_cast<float>(a_sum)), x);
  _mm512_storeu_ps(y, _mm512_fmadd_ps(x, _mm512_loadu_ps(scale), _mm512_loadu_ps(y)));
}

}  // namespace
}  // namespace lamina::gemm_int4_int8
