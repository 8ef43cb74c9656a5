// Tests of rms_norm and rms_norm_int8 on every ISA, in memory whose guards show a stray byte. The results in floats are
// compared with doubles, those in int8 with quantize_int8 of the floats.
#include <cmath>

#include "int8_results.h"
#include "ops/quantize_int8/quantize_int8.h"
#include "ops/rms_norm/rms_norm.h"
#include "threads.h"

namespace lamina::test {
namespace {

using rms_norm::Params;

// [m, n] with `extra` elements between rows.
template <class T>
Exact<T> random_rows(int64_t m, int64_t n, int64_t extra, Random& random) {
  Exact<T> rows(m == 0 ? 0 : (m - 1) * (n + extra) + n);
  for (int64_t i = 0; i < rows.count(); ++i)
    rows[i] = from_f32<T>((static_cast<float>(random.next() % 4001) - 1500.0f) / 256.0f);
  return rows;
}

template <class T>
void check(int64_t m, int64_t n, int64_t extra, DType dtype, bool has_residual,
           const Parallel& parallel) {
  Random random(static_cast<uint64_t>(m * 10000 + n));
  Exact<T> x = random_rows<T>(m, n, extra, random), residual = random_rows<T>(m, n, 3, random);
  Exact<T> weight = random_rows<T>(1, n, 0, random);
  Guarded<T> out(m * n), z(has_residual ? m * n : 0), again(has_residual ? m * n : 0);
  Params params;
  params.m = m, params.n = n;
  params.dtype = dtype;
  params.x = x.data();
  params.x_stride = n + extra;
  params.weight = weight.data();
  params.eps = 1e-3f;
  if (has_residual) params.residual = residual.data();
  params.residual_stride = n + 3;
  params.new_residual = z.data();
  params.out = out.data();
  CHECK(rms_norm::check("rms_norm", params).is_ok());
  CHECK(rms_norm::run(params, parallel).is_ok());
  const double tolerance = dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 1e-3 : 8e-3;
  for (int64_t i = 0; i < m; ++i) {
    double sum = 0;
    const auto at = [&](int64_t j) {
      return to_f32(has_residual ? z[i * n + j] : x[i * (n + extra) + j]);
    };
    for (int64_t j = 0; j < n; ++j) {
      sum += static_cast<double>(at(j)) * at(j);
      if (has_residual)
        CHECK_EQ(at(j), to_f32(from_f32<T>(to_f32(x[i * (n + extra) + j]) +
                                           to_f32(residual[i * (n + 3) + j]))));
    }
    for (int64_t j = 0; j < n; ++j) {
      const double want =
          at(j) / std::sqrt(sum / static_cast<double>(n) + 1e-3) * to_f32(weight[j]);
      CHECK(std::abs(to_f32(out[i * n + j]) - want) <= tolerance * std::abs(want));
    }
  }
  CHECK(out.guards_are_intact() && z.guards_are_intact());
  for (bool symmetric : {true, false}) {
    Int8Results got(m, n, symmetric), want(m, n, symmetric);
    params.out = nullptr;
    params.new_residual = again.data();
    params.quantized = got.rows();
    CHECK(rms_norm::run(params, parallel).is_ok());
    quantize_int8::Params quantize;
    static_cast<Int8Rows&>(quantize) = want.rows();
    quantize.m = m, quantize.k = n;
    quantize.x = out.data();
    quantize.x_dtype = dtype;
    quantize.x_stride = n;
    CHECK(quantize_int8::run(quantize, Serial()).is_ok());
    check_same(got, want, m, n);
    for (int64_t i = 0; has_residual && i < m * n; ++i) CHECK_EQ(to_f32(again[i]), to_f32(z[i]));
    CHECK(again.guards_are_intact());
  }
}

TEST(rms_norm_on_every_isa) {
  for_each_isa([](Isa isa) {
    for (int64_t m : {0, 1, 2, 17})
      for (int64_t n : {1, 7, 64, 65, 130, 1000, 2049})
        for (bool has_residual : {false, true})
          for (int64_t extra : {0, 5}) {
            at(isa_name(isa), " ", m, " x ", n, " + ", extra, has_residual ? " residual" : "");
            check<float>(m, n, extra, DType::kF32, has_residual, Serial());
            check<F16>(m, n, extra, DType::kF16, has_residual, Backwards(2));
            check<BF16>(m, n, extra, DType::kBF16, has_residual, Threads(3));
          }
  });
}

TEST(rms_norm_refuses_long_rows_and_bad_eps) {
  Params params;
  params.n = rms_norm::kMaxN;
  params.eps = 1.0f;
  CHECK(rms_norm::check("rms_norm", params).is_ok());
  for (float eps : {0.0f, -1.0f, 1e-39f, INFINITY, NAN}) {
    params.eps = eps;
    CHECK(rms_norm::check("rms_norm", params).message().find("eps = ") != std::string::npos);
  }
  params.eps = 1.0f;
  params.n = rms_norm::kMaxN + 1;
  CHECK(rms_norm::check("rms_norm_int8", params)
            .message()
            .starts_with("rms_norm_int8: n = 16777217"));
}

}  // namespace
}  // namespace lamina::test
