// Tests of the products with 2:4 weights on every ISA against the dense products with zeros in place, in memory whose
// guards show a stray byte.
#include <cmath>

#include "int4.h"
#include "int8.h"
#include "layout/sparse24.h"
#include "layout/sparse24_rows.h"
#include "ops/gemm_int4/gemm_int4.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "ops/matmul_sparse24/matmul_sparse24.h"
#include "ops/matmul_sparse24/pack.h"

namespace lamina::test {
namespace {

using gemm::Problem;

const Problem kSparseProblems[] = {{1, 1, 4, 16},      {0, 5, 8, 16},      {3, 0, 8, 16},
                                   {3, 5, 0, 16},      {1, 17, 68, 32},    {2, 33, 128, 16},
                                   {5, 15, 64, 48},    {7, 31, 1028, 128}, {17, 49, 192, 80},
                                   {33, 97, 76, 32},   {40, 70, 1100, 48}, {12, 130, 516, 528},
                                   {3, 65, 2500, 2000}};

// Random elements of a weight [n, k], of which each group keeps two; the others become `fill`.
template <class T>
void prune(Exact<T>& w, Random& random, T fill) {
  for (int64_t g = 0; g < w.count() / 4; ++g) {
    const auto first = random.next() % 4, second = random.next() % 4;
    for (uint32_t i = 0; i < 4; ++i)
      if (i != first && i != second) w[4 * g + i] = fill;
  }
}

Exact<uint8_t> compressed(const Problem& p, const void* w, uint8_t fill, int bits) {
  Exact<uint8_t> values(p.n * p.k / 2), metadata(p.n * sparse24::metadata_bytes(p.k));
  Exact<uint8_t> data(*sparse24_rows::packed_bytes(p.n, p.k, bits));
  CHECK(compress_sparse24::compress({compress_sparse24::Element::kInt8, p.n, p.k, fill}, {w, p.k},
                                    values.data(), metadata.data(), Serial())
            .is_ok());
  CHECK(matmul_sparse24::pack(
            matmul_sparse24::kRowsLayout, {p.n, p.k, bits},
            {values.data(), p.k / 2, metadata.data(), sparse24::metadata_bytes(p.k)}, data.data(),
            Serial())
            .is_ok());
  return data;
}

TEST(sparse24_int8_equals_the_dense_product_on_every_isa) {
  for (Problem problem : kSparseProblems)
    for (int64_t group : {int64_t{0}, gemm_int8::kScaleGroup}) {
      problem.group = group;
      Int8Inputs inputs(problem, 3, 7, 8);
      prune(inputs.w, inputs.random, int8_t{0});
      CHECK(gemm_int8::pack(inputs.w.data(), problem, problem.k, inputs.packed.data(),
                            inputs.sums.data(), Serial())
                .is_ok());
      Exact<uint8_t> data = compressed(problem, inputs.w.data(), 0, 8);
      Exact<float> want(problem.m * problem.n);
      CHECK(gemm_int8::run(inputs.params(want.data(), problem.n, DType::kF32), Serial()).is_ok());
      for_each_isa([&](Isa isa) {
        at(isa_name(isa), " ", problem.m, " x ", problem.n, " x ", problem.k, " / ", group);
        for (int threads : {1, 3})
          check_run(
              problem,
              [&](float* out, int64_t stride) {
                matmul_sparse24::Int8Params params;
                static_cast<gemm_int8::Params&>(params) = inputs.params(out, stride, DType::kF32);
                params.weight.data = data.data();
                return matmul_sparse24::run(params, Threads(threads));
              },
              [&](int64_t i, int64_t j) { return want[i * problem.n + j]; });
      });
    }
}

// Runs `Dense` with codes 8 in place of what is not kept, and `Sparse` on every ISA.
template <class Dense, class Sparse, class RunDense, class RunSparse>
void check_int4(const Dense& dense_of, const RunDense& run_dense, const RunSparse& run_sparse) {
  for (const Problem& p : kSparseProblems) {
    Random random(11);
    Weight weight(p, false, random);
    prune(weight.q, random, uint8_t{8});
    CHECK(gemm_int4::pack(weight.q.data(), p.n, p.k, p.k, int4::rows_place, weight.packed.data(),
                          Serial())
              .is_ok());
    Exact<uint8_t> data = compressed(p, weight.q.data(), 8, 4);
    auto dense = dense_of(weight, random);
    Exact<float> want(p.m * p.n);
    dense.params.out = want.data();
    dense.params.out_stride = p.n;
    CHECK(run_dense(dense.params).is_ok());
    for_each_isa([&](Isa isa) {
      at(isa_name(isa), " ", p.m, " x ", p.n, " x ", p.k, " / ", p.group);
      for (int threads : {1, 3})
        check_run(
            p,
            [&](float* out, int64_t stride) {
              Sparse params;
              static_cast<decltype(dense.params)&>(params) = dense.params;
              params.weight.data = data.data();
              params.out = out;
              params.out_stride = stride;
              return run_sparse(params, threads);
            },
            [&](int64_t i, int64_t j) { return want[i * p.n + j]; });
    });
  }
}

template <class Params, class T>
struct Call {
  Params params;
  Exact<T> a;
  Exact<float> a_scale;

  Call(Weight& weight, Random& random)
      : a(activations<T>(weight.problem, weight.problem.k + 3, random)), a_scale(weight.problem.m) {
    for (int64_t i = 0; i < a_scale.count(); ++i) a_scale[i] = random.scale();
    weight.fill(params);
    params.a = a.data();
    params.a_stride = weight.problem.k + 3;
    if constexpr (requires { params.a_scale; }) params.a_scale = {a_scale.data(), 1};
  }
};

TEST(sparse24_int4_equals_the_dense_product_on_every_isa) {
  check_int4<decltype([](Weight& w, Random& r) { return Call<gemm_int4::Params, float>(w, r); }),
             matmul_sparse24::Int4Params>(
      {}, [](const auto& params) { return gemm_int4::run(params, Serial()); },
      [](const auto& params, int threads) {
        return matmul_sparse24::run(params, Threads(threads));
      });
}

TEST(sparse24_int4_int8_equals_the_dense_product_on_every_isa) {
  check_int4<decltype([](Weight& w, Random& r) {
               return Call<gemm_int4_int8::Params, int8_t>(w, r);
             }),
             matmul_sparse24::Int4Int8Params>(
      {}, [](const auto& params) { return gemm_int4_int8::run(params, nullptr, Serial()); },
      [](const auto& params, int threads) {
        return matmul_sparse24::run(params, nullptr, Threads(threads));
      });
}

}  // namespace
}  // namespace lamina::test
