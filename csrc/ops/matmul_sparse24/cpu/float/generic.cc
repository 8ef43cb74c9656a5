// matmul_sparse24, matmul_sparse24_int4 / generic: plain loops, for any CPU.
#include <bit>
#include <cmath>
#include <cstring>

#include "ops/matmul_sparse24/cpu/float/sparse.h"

namespace lamina::matmul_sparse24 {
namespace {

template <class T>
T read(const uint8_t* from, int at) {
  T value;
  std::memcpy(&value, from + at * static_cast<int>(sizeof value), sizeof value);
  return value;
}

template <Value kValue>
struct Tile {
  static constexpr int kTileM = 4, kFewRows = 3, kTileN = matmul_sparse24::kTileN, kBlockK = 256;

  // Kept weight i of column j.
  static float weight(const uint8_t* values, int i, int j, float scale, float minus_zero) {
    if constexpr (kValue == Value::kInt4) {
      const auto code = static_cast<float>(read<uint32_t>(values, j) >> code_shift(i) & 15);
      return std::fma(code, scale, minus_zero);
    } else if constexpr (kValue == Value::kF32) {
      return read<float>(values, i * kTileN + j);
    } else if constexpr (kValue == Value::kF16) {
      return to_f32(read<F16>(values, i * kTileN + j));
    } else {
      return to_f32(read<BF16>(values, i * kTileN + j));
    }
  }

  static void dequantize(const uint8_t* tile, int64_t k, const float* scale,
                         const float* minus_zero, float* to) {
    const auto line = line_at<bits_of(kValue)>(tile, k);
    for (int i = 0; i < kKept; ++i, to += 2 * kTileN)
      for (int j = 0; j < kTileN; ++j) {
        const uint32_t index = read<uint32_t>(line.indices, j) >> (line.shift + index_shift(i));
        to[j] = weight(line.values, i, j, scale[j], minus_zero[j]);
        to[kTileN + j] = std::bit_cast<float>(index & 3);
      }
  }

  // y += the products of the two kept weights of a group, which `dequantize` made.
  static void add_group(int rows, const float* a, const float* w, float* y) {
    for (int kept = 0; kept < 2; ++kept, w += 2 * kTileN)
      for (int r = 0; r < rows; ++r)
        for (int j = 0; j < kTileN; ++j) {
          const auto index = std::bit_cast<uint32_t>(w[kTileN + j]);
          y[r * kTileN + j] = std::fma(a[r * kGroupK + index], w[j], y[r * kTileN + j]);
        }
  }

  static void multiply(const Step& step) {
    const float *a = step.a, *w = step.w;
    for (int64_t k = 0; k < step.k; k += kGroupK, a += step.rows * kGroupK, w += kGroupK * kTileN)
      add_group(step.rows, a, w, step.y);
  }

  static void multiply_lines(const Lines& lines) {
    const float* a = lines.a;
    alignas(64) float line[kLineK * kTileN];
    for (int64_t i = 0; i < lines.count; ++i) {
      dequantize(lines.w, lines.k + i * kLineK, lines.scale, lines.minus_zero, line);
      for (int k = 0; k < kLineK; k += kGroupK, a += lines.rows * kGroupK)
        add_group(lines.rows, a, line + k * kTileN, lines.y);
    }
  }
};

}  // namespace

extern constinit const CpuKernel matmul_sparse24_int4_generic =
    make_int4_kernel<Tile>("matmul_sparse24_int4_generic", Isa::kGeneric, 1);

extern constinit const CpuKernel matmul_sparse24_generic =
    make_float_kernel<Tile>("matmul_sparse24_generic", Isa::kGeneric, 1);

}  // namespace lamina::matmul_sparse24
