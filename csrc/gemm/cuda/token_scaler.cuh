// The Scaler (gemm/cuda/epilogue.cuh) of the products that quantise tokens: multiplies the sum over all groups by the scale of the token.
#pragma once

#include "device/device.h"
#include "gemm/cuda/epilogue.cuh"

namespace lamina::gemm {

struct TokenScaler : Unscaled {
  struct Row {
    float token_scale;

    LAMINA_DEVICE static Row of(const auto& p, int64_t i) {
      return {dev::load_global(p.token_scale + i)};
    }
  };
  LAMINA_DEVICE static float scale(float sum, const Row& row, const auto&, int) {
    return sum * row.token_scale;
  }
};

}  // namespace lamina::gemm
