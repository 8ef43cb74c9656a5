// Tests of silu_mul and silu_mul_int8 on every ISA, in memory whose guards show a stray byte. The results in floats are
// compared with doubles, those in int8 with quantize_int8 of the floats.
#include <cmath>

#include "int8_results.h"
#include "ops/quantize_int8/quantize_int8.h"
#include "ops/silu_mul/silu_mul.h"
#include "threads.h"

namespace lamina::test {
namespace {

using silu_mul::Params;

// gate beside up, [m, 2 n] with `extra` elements between rows.
template <class T>
void check(int64_t m, int64_t n, int64_t extra, DType dtype, const Parallel& parallel) {
  Random random(static_cast<uint64_t>(m * 10000 + n));
  const int64_t stride = 2 * n + extra;
  Exact<T> x(m == 0 ? 0 : (m - 1) * stride + 2 * n);
  for (int64_t i = 0; i < x.count(); ++i)
    x[i] = from_f32<T>((static_cast<float>(random.next() % 4001) - 1500.0f) / 256.0f);
  Guarded<T> out(m * n);
  Params params;
  params.m = m, params.n = n;
  params.dtype = dtype;
  params.gate = x.data();
  params.up = x.data() + n;
  params.gate_stride = params.up_stride = stride;
  params.out = out.data();
  CHECK(silu_mul::run(params, parallel).is_ok());
  const double tolerance = dtype == DType::kF32 ? 1e-6 : dtype == DType::kF16 ? 6e-4 : 5e-3;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const double gate = to_f32(x[i * stride + j]), up = to_f32(x[i * stride + n + j]);
      const double want = gate / (1 + std::exp(-gate)) * up;
      CHECK(std::abs(to_f32(out[i * n + j]) - want) <= tolerance * std::abs(want) + 1e-7);
    }
  CHECK(out.guards_are_intact());
  for (bool symmetric : {true, false}) {
    Int8Results got(m, n, symmetric), want(m, n, symmetric);
    params.out = nullptr;
    params.quantized = got.rows();
    CHECK(silu_mul::run(params, parallel).is_ok());
    quantize_int8::Params quantize;
    static_cast<Int8Rows&>(quantize) = want.rows();
    quantize.m = m, quantize.k = n;
    quantize.x = out.data();
    quantize.x_dtype = dtype;
    quantize.x_stride = n;
    CHECK(quantize_int8::run(quantize, Serial()).is_ok());
    check_same(got, want, m, n);
  }
}

TEST(silu_mul_on_every_isa) {
  for_each_isa([](Isa isa) {
    for (int64_t m : {0, 1, 2, 17})
      for (int64_t n : {0, 1, 7, 64, 65, 130, 1000})
        for (int64_t extra : {0, 5}) {
          at(isa_name(isa), " ", m, " x ", n, " + ", extra);
          check<float>(m, n, extra, DType::kF32, Serial());
          check<F16>(m, n, extra, DType::kF16, Backwards(2));
          check<BF16>(m, n, extra, DType::kBF16, Threads(3));
        }
  });
}

}  // namespace
}  // namespace lamina::test
