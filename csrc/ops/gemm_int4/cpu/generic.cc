// gemm_int4 / generic: the loops as they are, for any CPU.
#include <cmath>

#include "ops/gemm_int4/cpu/body.h"

namespace lamina::gemm_int4 {
namespace {

struct Tile {
  static constexpr int kTileM = 4, kTileN = int4::kTileN, kBlockK = 256;

  static void dequantize(const uint8_t* line, const float* scale, const float* minus_zero,
                         float* to) {
    for (int k = 0; k < kLineK; ++k)
      for (int j = 0; j < kTileN; ++j) {
        const int code = line[j * 4 + k % 4] >> k / 4 * 4 & 15;
        to[k * kTileN + j] = std::fma(static_cast<float>(code), scale[j], minus_zero[j]);
      }
  }

  static void multiply(const Step& step) {
    const float *a = step.a, *w = step.w;
    for (int64_t p = 0; p < step.k; ++p, a += step.rows, w += kTileN)
      for (int r = 0; r < step.rows; ++r)
        for (int j = 0; j < kTileN; ++j)
          step.y[r * kTileN + j] = std::fma(a[r], w[j], step.y[r * kTileN + j]);
  }
};

}  // namespace

CpuKernel gemm_int4_generic(int64_t min_m) {
  return make_kernel<Tile>("gemm_int4_generic", Isa::kGeneric, min_m, 1);
}

}  // namespace lamina::gemm_int4
