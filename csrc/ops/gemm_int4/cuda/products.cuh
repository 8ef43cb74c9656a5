// The weights of gemm_int4 on both archs, and the steps on 16 k of them.
#pragma once

#include <type_traits>

#include "base/numeric.h"
#include "device/device.h"
#include "gemm/cuda/int4_groups.cuh"
#include "layout/int4.h"
#include "ops/gemm_int4/cuda/run.h"

namespace lamina::gemm_int4 {

// T_: F16 or BF16, the dtype of a.
template <class T_>
struct Int4Weights {
  using T = T_;
  using Params = gemm_int4::Params;
  static constexpr const char* kOp = "gemm_int4";
  static constexpr int kTileBytes = int4::kTileBytes;
  static constexpr bool kHasGroups = true;

  template <int kColumns, int kStageSlices>
  using Groups = StageGroups<T, kColumns, kStageSlices>;
  static GroupArgs group_args(const Params& params) { return GroupArgs::of(params); }
};

// Sets the weights of 16 k from the `valid`-th on to 0. Past k, codes and scales are arbitrary, and weights may be
// Inf or NaN.
LAMINA_DEVICE void mask_weights(uint32_t (&a)[4], int valid) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int left = valid - dev::lane() % 4 * 2 - i / 2 * 8;  // valid weights of the pair
    a[i] &= left >= 2 ? 0xffffffffu : left == 1 ? 0x0000ffffu : 0u;
  }
}

// sums[16,8] += a[16,16] * b[16,8]
template <class T>
LAMINA_DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  if constexpr (std::is_same_v<T, F16>) {
    dev::mma_m16n8k16_f16(sums, a, b);
  } else {
    dev::mma_m16n8k16_bf16(sums, a, b);
  }
}

}  // namespace lamina::gemm_int4
