// Compares the products of int4 weights with perm to the products of a gathered copy of a, on every ISA, and checks
// that they read nothing outside of a.
#include "int4.h"
#include "ops/gemm_int4/gemm_int4.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"
#include "ops/quantize_int8/quantize_int8.h"

namespace lamina::test {
namespace {

// Rows [m, features] in memory of exactly this size, and their gathered copy. A quarter of the packed places has no
// feature.
template <class T>
struct Gathered {
  int64_t features;
  Exact<T> a, copy;  // [m, features], [m, k]
  Exact<int32_t> perm;

  Gathered(const Problem& p, int64_t count, Random& random)
      : features(count), a(p.m * count), copy(p.m * p.k), perm(p.k) {
    for (int64_t i = 0; i < a.count(); ++i) a[i] = static_cast<T>(random.int8());
    for (int64_t q = 0; q < p.k; ++q)
      perm[q] = features == 0 || random.next() % 4 == 0
                    ? -1
                    : static_cast<int32_t>(random.next() % static_cast<uint32_t>(features));
  }

  template <class Nothing>
  void gather(const Problem& p, const Nothing& nothing) {
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t q = 0; q < p.k; ++q)
        copy[i * p.k + q] = perm[q] < 0 ? nothing(i) : a[i * features + perm[q]];
  }
};

// Checks on every ISA that run(params) gives the same for the rows and for the copy.
template <class Params, class T, class Run>
void check_gathered(Params params, Gathered<T>& rows, const Run& run) {
  const Problem& p = params.problem;
  for_each_isa([&](Isa isa) {
    at(isa_name(isa), " ", p.m, " x ", p.n, " x ", p.k, " / ", p.group, ", a of ", rows.features);
    Exact<float> want(p.m * p.n);
    params.perm = {};
    params.a = rows.copy.data();
    params.a_stride = p.k;
    params.out = want.data();
    params.out_stride = p.n;
    CHECK(run(params).is_ok());
    params.perm = {rows.perm.data(), rows.features};
    params.a = rows.a.data();
    params.a_stride = rows.features;
    check_run(
        p,
        [&](float* out, int64_t out_stride) {
          params.out = out;
          params.out_stride = out_stride;
          return run(params);
        },
        [&](int64_t i, int64_t j) { return want[i * p.n + j]; });
  });
}

TEST(a_permuted_product_is_that_of_a_gathered_copy) {
  for_problems([](Weight& weight, Random& random) {
    const Problem& p = weight.problem;
    for (int64_t features : {int64_t{0}, int64_t{1}, p.k + 5}) {
      Gathered<float> floats(p, features, random);
      floats.gather(p, [](int64_t) { return 0.0f; });
      gemm_int4::Params w4a16;
      weight.fill(w4a16);
      check_gathered(w4a16, floats,
                     [](const auto& params) { return gemm_int4::run(params, Threads(2)); });

      Gathered<int8_t> bytes(p, features, random);
      Exact<int8_t> zero(p.m);
      for (int64_t i = 0; i < p.m; ++i) zero[i] = random.int8();
      const float scale = 0.01f;
      gemm_int4_int8::Params w4a8;
      weight.fill(w4a8);
      w4a8.a_scale = {&scale, 0};
      for (bool has_zero : {false, true}) {
        bytes.gather(p, [&](int64_t i) { return has_zero ? zero[i] : int8_t{0}; });
        if (has_zero) w4a8.a_zero_point = {zero.data(), 1};
        check_gathered(w4a8, bytes, [](const auto& params) {
          return gemm_int4_int8::run(params, nullptr, Threads(2));
        });
      }
    }
  });
}

TEST(a_product_quantises_all_features_before_it_gathers_some) {
  for_problems([](Weight& weight, Random& random) {
    const Problem& p = weight.problem;
    for (int64_t features : {int64_t{0}, int64_t{1}, p.k + 5}) {
      Gathered<float> rows(p, features, random);
      Exact<int8_t> q(rows.a.count());
      Exact<float> scale(p.m);
      quantize_int8::Params quantize;
      quantize.m = p.m;
      quantize.k = quantize.x_stride = features;
      quantize.x = rows.a.data();
      quantize.q = q.data();
      quantize.scale = scale.data();
      CHECK(quantize_int8::run(quantize, Serial()).is_ok());
      Exact<float> want(p.m * p.n);
      gemm_int4_int8::Params params;
      weight.fill(params);
      params.perm = {rows.perm.data(), features};
      params.a = q.data();
      params.a_stride = features;
      params.a_scale = {scale.data(), 1};
      params.out = want.data();
      params.out_stride = p.n;
      CHECK(gemm_int4_int8::run(params, nullptr, Serial()).is_ok());
      params.has_floats = true;
      params.floats = rows.a.data();
      Exact<std::byte> workspace(gemm_int4_int8::workspace_bytes(params));
      at(p.m, " x ", p.n, " x ", p.k, ", floats of ", features);
      check_run(
          p,
          [&](float* out, int64_t out_stride) {
            params.out = out;
            params.out_stride = out_stride;
            return gemm_int4_int8::run(params, workspace.data(), Threads(2));
          },
          [&](int64_t i, int64_t j) { return want[i * p.n + j]; });
    }
  });
}

TEST(packing_by_perm_is_packing_what_it_names) {
  constexpr int64_t kN = 19, kFeatures = 70, kK = 131;
  Random random(5);
  Exact<uint8_t> q(kN * kFeatures), copy(kN * kK);
  Exact<int32_t> perm(kK);
  for (int64_t i = 0; i < q.count(); ++i) q[i] = static_cast<uint8_t>(random.next() % 16);
  for (int64_t p = 0; p < kK; ++p) perm[p] = static_cast<int32_t>(random.next() % 71) - 1;
  for (int64_t i = 0; i < kN; ++i)
    for (int64_t p = 0; p < kK; ++p)
      copy[i * kK + p] = perm[p] < 0 ? uint8_t{0} : q[i * kFeatures + perm[p]];
  Exact<uint8_t> got(*int4::packed_bytes(kN, kK)), want(*int4::packed_bytes(kN, kK));
  for (int4::Layout layout : {int4::tile_place, int4::rows_place}) {
    CHECK(gemm_int4::pack(copy.data(), kN, kK, kK, layout, want.data(), Serial()).is_ok());
    CHECK(gemm_int4::pack(q.data(), kN, kK, kFeatures, layout, got.data(), Threads(2),
                          {perm.data(), kFeatures})
              .is_ok());
    for (int64_t i = 0; i < got.count(); ++i) CHECK_EQ(got[i], want[i]);
  }
}

}  // namespace
}  // namespace lamina::test
