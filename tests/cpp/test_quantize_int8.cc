// Tests of quantize_int8 on every ISA against the formula, in memory whose guards show a stray byte.
#include <cfloat>
#include <cmath>
#include <limits>

#include "memory.h"
#include "ops/quantize_int8/cpu/kernel.h"
#include "ops/quantize_int8/quantize_int8.h"
#include "threads.h"

namespace lamina::test {
namespace {

using quantize_int8::Params;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Row {
  float scale = kNaN;
  int zero_point = 0;
  std::vector<int> q;
};

// The formula of quantize_int8.h with the C library's functions.
Row expected(const std::vector<float>& x, bool symmetric) {
  Row row;
  row.q.assign(x.size(), 0);
  float low = 0, high = 0;
  for (float value : x) {
    if (!std::isfinite(value)) return row;
    low = std::fmin(low, value);
    high = std::fmax(high, value);
  }
  row.scale =
      std::fmax(symmetric ? std::fmax(-low, high) / 127.0f : high / 255.0f - low / 255.0f, FLT_MIN);
  const float inverse = 1.0f / row.scale;
  if (!symmetric)
    row.zero_point =
        static_cast<int>(std::fmin(std::fmax(std::rint(-128.0f - low * inverse), -128.0f), 127.0f));
  for (size_t j = 0; j < x.size(); ++j) {
    const int step = static_cast<int>(std::rint(x[j] * inverse)) + row.zero_point;
    row.q[j] = std::min(std::max(step, symmetric ? -127 : -128), 127);
  }
  return row;
}

template <class In>
void check_dynamic(int64_t m, int64_t k, int64_t extra, DType dtype, bool symmetric,
                   const Parallel& parallel) {
  Random random(static_cast<uint64_t>(m * 1000 + k));
  const int64_t stride = k + extra;
  Exact<In> x(m == 0 ? 0 : (m - 1) * stride + k);
  const float specials[] = {kNaN, kInf, -kInf, 0.0f, -0.0f, FLT_MIN, 1e-38f, 6e4f};
  for (int64_t i = 0; i < x.count(); ++i)
    x[i] = from_f32<In>((static_cast<float>(random.next() % 4001) - 1500.0f) *
                        std::ldexp(1.0f, static_cast<int>(i % 7)));
  for (int64_t i = 1; i < m; i += 2)
    if (k > 0)
      x[i * stride + random.next() % k] = from_f32<In>(specials[static_cast<size_t>(i / 2) % 8]);
  Guarded<int8_t> q(m * k), zero_point(symmetric ? 0 : m);
  Guarded<float> scale(m);
  Params params;
  params.m = m, params.k = k;
  params.x = x.data();
  params.x_dtype = dtype;
  params.x_stride = stride;
  params.symmetric = symmetric;
  params.q = q.data();
  params.scale = scale.data();
  params.zero_point = zero_point.data();
  CHECK(quantize_int8::run(params, parallel).is_ok());
  for (int64_t i = 0; i < m; ++i) {
    std::vector<float> row;
    for (int64_t j = 0; j < k; ++j) row.push_back(to_f32(x[i * stride + j]));
    const Row want = expected(row, symmetric);
    CHECK(scale[i] == want.scale || (std::isnan(scale[i]) && std::isnan(want.scale)));
    if (!symmetric) CHECK_EQ(zero_point[i], want.zero_point);
    for (int64_t j = 0; j < k; ++j) CHECK_EQ(q[i * k + j], want.q[static_cast<size_t>(j)]);
  }
  CHECK(q.guards_are_intact() && scale.guards_are_intact() && zero_point.guards_are_intact());
}

TEST(every_isa_equals_the_formula) {
  for_each_isa([](Isa isa) {
    for (int64_t m : {0, 1, 2, 17})
      for (int64_t k : {0, 1, 7, 16, 31, 64, 65, 130, 1000})
        for (bool symmetric : {true, false})
          for (int64_t extra : {0, 5}) {
            at(isa_name(isa), " ", m, " x ", k, " + ", extra,
               symmetric ? " symmetric" : " asymmetric");
            check_dynamic<float>(m, k, extra, DType::kF32, symmetric, Serial());
            check_dynamic<F16>(m, k, extra, DType::kF16, symmetric, Backwards(2));
            check_dynamic<BF16>(m, k, extra, DType::kBF16, symmetric, Threads(3));
          }
  });
}

TEST(bad_static_scales_are_refused_and_nothing_is_written) {
  Exact<float> x(6), given(2);
  std::fill(x.data(), x.data() + 6, 1.0f);
  for (float bad : {0.0f, -1.0f, kNaN, kInf, -kInf, 1e-39f}) {
    Guarded<int8_t> q(6);
    Guarded<float> scale(2);
    given[0] = 1, given[1] = bad;
    Params params;
    params.m = 2, params.k = 3;
    params.x = x.data();
    params.x_stride = 3;
    params.static_scale = {given.data(), 1};
    params.q = q.data();
    params.scale = scale.data();
    const Status status = quantize_int8::run(params, Serial());
    CHECK(!status.is_ok());
    CHECK(status.message().find("scale[1]") != std::string::npos);
    CHECK(std::isnan(scale[0]) && q[0] == -1);
    params.static_scale.stride = 0;  // one scale for all rows, the valid one
    CHECK(quantize_int8::run(params, Serial()).is_ok());
    CHECK(q.guards_are_intact() && scale.guards_are_intact());
  }
}

// The rows of x lie gigabytes apart.
TEST(rows_beyond_2_to_31_elements) {
  const int64_t stride = (int64_t{1} << 31) + 1, m = 3;
  Sparse x(m * stride * 2);
  Guarded<int8_t> q(m * 64);
  if (!x.is_mapped()) return;
  auto* const values = x.as<BF16>();
  Params params;
  params.m = m, params.k = 64;
  params.x = values;
  params.x_dtype = DType::kBF16;
  params.x_stride = stride;
  std::vector<float> scale(static_cast<size_t>(m));
  params.scale = scale.data();
  params.q = q.data();
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < 64; ++j)
      values[i * stride + j] = from_f32<BF16>(static_cast<float>((i + 1) * (j - 30)));
  CHECK(quantize_int8::run(params, Serial()).is_ok());
  for (int64_t i = 0; i < m; ++i) {
    CHECK_EQ(scale[static_cast<size_t>(i)], static_cast<float>((i + 1) * 33) / 127.0f);
    CHECK_EQ(q[i * 64 + 63], 127);
  }
}

}  // namespace
}  // namespace lamina::test
