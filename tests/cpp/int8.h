// Problems for gemm_int8 and their results, in memory whose guards show a stray byte.
#pragma once

#include <cmath>
#include <vector>

#include "layout/int8_tile.h"
#include "memory.h"
#include "operand.h"
#include "ops/gemm_int8/gemm_int8.h"
#include "ops/gemm_int8/pack.h"
#include "threads.h"

namespace lamina::test {

// A problem with its operands in exactly sized memory, and the exact sums.
struct Int8Inputs {
  gemm_int8::Problem problem;
  int64_t a_stride;
  Exact<int8_t> a, w;
  int64_t groups;  // groups of scales along k, else 1
  Exact<float> a_scale, w_scale;
  Exact<int8_t> zero_point;
  Exact<int8_t> packed;
  Exact<int32_t> sums;
  Random random;
  Followed then;
  std::vector<int64_t> acc;

  // loud: one activation in `loud` takes the whole range of int8; the others are below 33, as after a
  // quantiser. Kernels may choose their path by the sizes of activations.
  Int8Inputs(gemm_int8::Problem p, int64_t extra, uint64_t seed, uint32_t loud = 1)
      : problem(p),
        a_stride(p.k + extra),
        a(p.m == 0 ? 0 : (p.m - 1) * (p.k + extra) + p.k),
        w(p.n * p.k),
        groups(p.groups()),
        a_scale(p.m * groups),
        w_scale(p.n * groups),
        zero_point(p.m),
        packed(*int8_tile::packed_bytes(p.n, p.k)),
        sums(p.n * groups),
        random(seed),
        then(p.m, p.n, p.k, random),
        acc(static_cast<size_t>(p.m * p.n * groups), 0) {
    for (int64_t i = 0; i < a.count(); ++i)
      a[i] = static_cast<int8_t>(random.int8() / (random.next() % loud == 0 ? 1 : 4));
    for (int64_t i = 0; i < w.count(); ++i) w[i] = random.int8();
    for (int64_t i = 0; i < a_scale.count(); ++i) a_scale[i] = random.scale();
    for (int64_t i = 0; i < p.m; ++i) zero_point[i] = random.int8();
    for (int64_t j = 0; j < w_scale.count(); ++j) w_scale[j] = random.scale();
    CHECK(gemm_int8::pack(w.data(), p, p.k, packed.data(), sums.data(), Serial()).is_ok());
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j)
        for (int64_t q = 0; q < p.k; ++q)
          acc[at(p.is_grouped() ? q / gemm_int8::kScaleGroup : 0, i, j)] +=
              (a[i * a_stride + q] - zero_point[i]) * w[j * p.k + q];
  }

  size_t at(int64_t g, int64_t i, int64_t j) const {
    return static_cast<size_t>((g * problem.m + i) * problem.n + j);
  }

  // The scaled sum, without bias and the later steps of the epilogue.
  float scaled(int64_t i, int64_t j) {
    const auto product = [&](int64_t g) {
      return static_cast<float>(acc[at(g, i, j)]) * a_scale[i * groups + g];
    };
    if (!problem.is_grouped()) return product(0) * w_scale[j];
    float total = groups == 0 ? 0.0f : -0.0f, k_chunk = -0.0f;
    for (int64_t g = 0; g < groups; ++g) {
      k_chunk = std::fma(product(g), w_scale[g * problem.n + j], k_chunk);
      if ((g + 1) % gemm_int8::kChunkGroups != 0 && g + 1 < groups) continue;
      total += k_chunk;
      k_chunk = -0.0f;
    }
    return total;
  }

  float expected(int64_t i, int64_t j) { return then.after(scaled(i, j), i, j); }

  gemm_int8::Params params(void* out, int64_t out_stride, DType out_dtype) {
    gemm_int8::Params p;
    p.problem = problem;
    p.a = a.data();
    p.a_stride = a_stride;
    p.w = packed.data();
    p.w_sums = sums.data();
    p.a_scale = {a_scale.data(), groups};
    p.w_scale = {w_scale.data(), 1};
    p.a_scale_group = 1;
    p.w_scale_group = problem.n;
    p.a_zero_point = {zero_point.data(), 1};
    then.give(p);
    p.out = out;
    p.out_stride = out_stride;
    p.out_dtype = out_dtype;
    return p;
  }
};

}  // namespace lamina::test
