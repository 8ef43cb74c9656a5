// Problems for the products of int4 weights, in memory whose guards show a stray byte.
#pragma once

#include <cmath>

#include "gemm/problem.h"
#include "operand.h"
#include "ops/gemm_int4/pack.h"
#include "quant/group_tensor.h"
#include "threads.h"

namespace lamina::test {

using gemm::Problem;

// A weight, its scales and zero points in exactly sized memory.
struct Weight {
  Problem problem;
  Exact<uint8_t> q, packed, zero_point;
  Exact<float> scale;
  Followed then;
  bool has_zero;

  Weight(Problem p, bool with_zero, Random& random)
      : problem(p),
        q(p.n * p.k),
        packed(*int4::packed_bytes(p.n, p.k)),
        zero_point(p.groups() * p.n),
        scale(p.groups() * p.n),
        then(p.m, p.n, p.k, random),
        has_zero(with_zero) {
    for (int64_t i = 0; i < q.count(); ++i) q[i] = static_cast<uint8_t>(random.next() % 16);
    for (int64_t i = 0; i < scale.count(); ++i) {
      scale[i] = random.scale();
      zero_point[i] = static_cast<uint8_t>(with_zero ? random.next() % 16 : 8);
    }
    CHECK(gemm_int4::pack(q.data(), p.n, p.k, p.k, int4::rows_place, packed.data(), Serial())
              .is_ok());
  }

  template <class Params>
  void fill(Params& params) {
    params.problem = problem;
    params.w = packed.data();
    params.w_scale = {scale.data(), GroupTensor::Kind::kF32, problem.n, 1};
    if (has_zero) params.w_zero_point = {zero_point.data(), GroupTensor::Kind::kU8, problem.n, 1};
    then.give(params);
  }
};

template <class T>
Exact<T> activations(const Problem& p, int64_t stride, Random& random) {
  Exact<T> a(p.m == 0 ? 0 : (p.m - 1) * stride + p.k);
  for (int64_t i = 0; i < a.count(); ++i) a[i] = static_cast<T>(random.int8());
  return a;
}

// Checks run(out, stride of out), which fills rows with gaps between them: outputs are want(i, j), and gaps and
// guards stay untouched.
template <class Run, class Want>
void check_run(const Problem& p, const Run& run, const Want& want) {
  const int64_t stride = p.n + 3;
  Guarded<float> out(p.m * stride);
  CHECK(run(out.data(), stride).is_ok());
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) CHECK_EQ(out[i * stride + j], want(i, j));
    for (int64_t j = p.n; j < stride; ++j) CHECK(std::isnan(out[i * stride + j]));
  }
  CHECK(out.guards_are_intact());
}

inline const Problem kInt4Problems[] = {
    {1, 1, 1, 16},       {0, 5, 7, 16},       {3, 0, 5, 16},      {3, 5, 0, 16},
    {1, 17, 65, 32},     {2, 33, 127, 16},    {5, 15, 63, 48},    {6, 16, 64, 64},
    {7, 31, 1029, 128},  {17, 49, 191, 80},   {33, 97, 77, 32},   {40, 70, 1101, 48},
    {12, 130, 513, 528}, {66, 128, 256, 128}, {3, 65, 2500, 2000}};

template <class Check>
void for_problems(const Check& check) {
  for (const Problem& problem : kInt4Problems)
    for (bool has_zero : {false, true}) {
      Random random(11);
      Weight weight(problem, has_zero, random);
      check(weight, random);
    }
}

}  // namespace lamina::test
