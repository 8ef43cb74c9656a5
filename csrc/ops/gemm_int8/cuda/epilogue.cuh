// What follows the sums on a GPU: the formula of ../epilogue.h for eight neighbouring columns of a row.
#pragma once

#include "device/device.h"
#include "ops/gemm_int8/epilogue.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

inline constexpr int kStoreColumns = 8;

// Eight results as the 16-byte words that store them.
template <class Out>
struct alignas(16) Octet {
  Out value[kStoreColumns];
};

LAMINA_DEVICE float load_bias(const Params& p, int64_t j) {
  if (p.bias == nullptr) return kNoBias;
  if (p.bias_dtype == DType::kF32) return static_cast<const float*>(p.bias)[j];
  if (p.bias_dtype == DType::kF16) return to_f32(static_cast<const F16*>(p.bias)[j]);
  return to_f32(static_cast<const BF16*>(p.bias)[j]);
}

template <class Out, class Acc>
LAMINA_DEVICE void store_octet_as(const Params& p, const Acc (&acc)[kStoreColumns], int64_t i,
                                  int64_t j0) {
  const float a_scale = p.a_scale[i];
  const int32_t zero = p.a_zero_point.is_given() ? p.a_zero_point[i] : 0;
  Out* const out = static_cast<Out*>(p.out) + i * p.out_stride + j0;
  const int64_t count = p.problem.n - j0;
  Octet<Out> result;
#pragma unroll
  for (int e = 0; e < kStoreColumns; ++e) {
    const int64_t j = j0 + (e < count ? e : 0);
    result.value[e] =
        finish<Out>(correct(acc[e], zero, p.w_sums[j]), a_scale, p.w_scale[j], load_bias(p, j));
  }
  const bool is_aligned = reinterpret_cast<uintptr_t>(out) % 16 == 0;
  if (count >= kStoreColumns && is_aligned) {
    constexpr int kWords = static_cast<int>(sizeof(result) / sizeof(dev::U32x4));
    const dev::U32x4* const words = reinterpret_cast<const dev::U32x4*>(&result);
#pragma unroll
    for (int v = 0; v < kWords; ++v)
      dev::store_global(reinterpret_cast<dev::U32x4*>(out) + v, words[v]);
  } else {
#pragma unroll
    for (int e = 0; e < kStoreColumns; ++e)
      if (e < count) dev::store_global(out + e, result.value[e]);
  }
}

// out[i, j0 .. j0 + 7] from the sums of a * w; columns from n on are left out. i < m, j0 < n.
template <class Acc>
LAMINA_DEVICE void store_octet(const Params& p, const Acc (&acc)[kStoreColumns], int64_t i,
                               int64_t j0) {
  if (p.out_dtype == DType::kF32) return store_octet_as<float>(p, acc, i, j0);
  if (p.out_dtype == DType::kF16) return store_octet_as<F16>(p, acc, i, j0);
  store_octet_as<BF16>(p, acc, i, j0);
}

}  // namespace lamina::gemm_int8
