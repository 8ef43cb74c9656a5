// The Scaler (gemm/cuda/epilogue.cuh) of int8 products without scales along k: scale() of gemm/epilogue_maths.h.
#pragma once

#include "device/device.h"
#include "gemm/epilogue_maths.h"

namespace lamina::gemm {

struct IntegerScaler {
  template <int kCount>
  struct Columns {
    int32_t w_sum[kCount];
    float w_scale[kCount];

    LAMINA_DEVICE Columns(const auto& p, int64_t j0, int64_t left) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const int64_t j = j0 + (e < left ? e : 0);
        w_sum[e] = p.a_zero_point.is_given() ? p.w_sums[j] : 0;
        w_scale[e] = p.w_scale[j];
      }
    }
  };

  struct Row {
    float a_scale;
    int32_t zero_point;

    LAMINA_DEVICE static Row of(const auto& p, int64_t i) {
      return {p.a_scale[i], p.a_zero_point.is_given() ? p.a_zero_point[i] : 0};
    }
    LAMINA_DEVICE static Row from_lane(const Row& row, const auto& p, int lane) {
      const float a_scale = dev::shuffle(row.a_scale, lane);
      return {a_scale, p.a_zero_point.is_given() ? dev::shuffle(row.zero_point, lane) : 0};
    }
  };

  template <class Acc>
  LAMINA_DEVICE static float scale(Acc acc, const Row& row, const auto& columns, int e) {
    return lamina::gemm::scale(correct(acc, row.zero_point, columns.w_sum[e]), row.a_scale,
                               columns.w_scale[e]);
  }
};

}  // namespace lamina::gemm
