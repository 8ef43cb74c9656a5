// gemm_int4 / generic: plain loops, for any CPU.
#include <cmath>

#include "ops/gemm_int4/cpu/dense.h"

namespace lamina::gemm_int4 {
namespace {

struct Tile {
  static constexpr int kTileM = 4, kFewRows = 3, kTileN = int4::kTileN, kBlockK = 256;

  static float weight(const uint8_t* line, int k, int j, float scale, float minus_zero) {
    const int code = line[j * 4 + k % 4] >> k / 4 * 4 & 15;
    return std::fma(static_cast<float>(code), scale, minus_zero);
  }

  static void dequantize(const uint8_t* tile, int64_t at, const float* scale,
                         const float* minus_zero, float* to) {
    const uint8_t* const line = line_at(tile, at);
    for (int k = 0; k < kLineK; ++k)
      for (int j = 0; j < kTileN; ++j)
        to[k * kTileN + j] = weight(line, k, j, scale[j], minus_zero[j]);
  }

  static void multiply(const Step& step) {
    const float *a = step.a, *w = step.w;
    for (int64_t p = 0; p < step.k; ++p, a += step.rows, w += kTileN)
      for (int r = 0; r < step.rows; ++r)
        for (int j = 0; j < kTileN; ++j)
          step.y[r * kTileN + j] = std::fma(a[r], w[j], step.y[r * kTileN + j]);
  }

  static void multiply_lines(const Lines& lines) {
    const float* a = lines.a;
    const uint8_t* w = line_at(lines.w, lines.k);
    for (int64_t i = 0; i < lines.count; ++i, w += kLineBytes)
      for (int k = 0; k < kLineK; ++k, a += lines.rows)
        for (int j = 0; j < kTileN; ++j) {
          const float one = weight(w, k, j, lines.scale[j], lines.minus_zero[j]);
          for (int r = 0; r < lines.rows; ++r)
            lines.y[r * kTileN + j] = std::fma(a[r], one, lines.y[r * kTileN + j]);
        }
  }
};

}  // namespace

extern constinit const CpuKernel gemm_int4_generic =
    make_kernel<Tile>("gemm_int4_generic", Isa::kGeneric, 1);

}  // namespace lamina::gemm_int4
