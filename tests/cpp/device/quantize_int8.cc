// The CUDA kernel of quantize_int8 on the emulator, with buffers of exactly their size, so that AddressSanitizer sees
// an access beside them. It rounds like the CPU kernels, which have their own tests.
#include "ops/quantize_int8/quantize_int8.h"

#include <cmath>

#include "check.h"
#include "device/device.h"
#include "operand.h"
#include "threads.h"

namespace lamina::test {
namespace {

using quantize_int8::Params;

// The outputs of a call.
struct Written {
  Exact<int8_t> q, zero_point;
  Exact<float> scale;

  explicit Written(const Params& p) : q(p.m * p.k), zero_point(p.symmetric ? 0 : p.m), scale(p.m) {}

  Params into(Params p) {
    p.q = q.data();
    p.scale = scale.data();
    p.zero_point = zero_point.data();
    return p;
  }
};

void check_rows(int64_t m, int64_t k, int64_t pad, DType dtype, bool symmetric, bool is_static) {
  Random random(static_cast<uint64_t>(m * 100 + k));
  FloatRows x(dtype, m, k, pad, random);
  Exact<float> scale(m);
  Exact<int8_t> zero_point(m);
  for (int64_t i = 0; i < m; ++i) scale[i] = random.scale(), zero_point[i] = random.int8();
  Params params;
  params.m = m;
  params.k = k;
  params.x = x.data();
  params.x_dtype = dtype;
  params.x_stride = k + pad;
  params.symmetric = symmetric;
  if (is_static) params.static_scale = {scale.data(), 1};
  if (is_static && !symmetric) params.static_zero_point = {zero_point.data(), 1};
  Written got(params), want(params);
  CHECK(quantize_int8::run_cuda(got.into(params), static_cast<int>(m), nullptr).is_ok());
  CHECK(quantize_int8::run(want.into(params), Serial()).is_ok());
  at(m, " x ", k, " + ", pad, ", dtype ", static_cast<int>(dtype), ", symmetric ", symmetric,
     ", static ", is_static);
  for (int64_t i = 0; i < m * k; ++i) CHECK_EQ(got.q[i], want.q[i]);
  for (int64_t i = 0; i < m; ++i) CHECK_EQ(got.scale[i], want.scale[i]);
  for (int64_t i = 0; i < got.zero_point.count(); ++i)
    CHECK_EQ(got.zero_point[i], want.zero_point[i]);
}

TEST(quantize_int8_on_the_emulator_stays_in_its_buffers) {
  dev::emu::options() = {};
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16})
    for (int64_t k : {1, 7, 64, 1029})
      for (int64_t pad : {int64_t{0}, (8 - k % 8) % 8, int64_t{3}})
        for (bool symmetric : {false, true})
          for (bool is_static : {false, true})
            check_rows(k == 64 ? 5 : 1 + k % 3, k, pad, dtype, symmetric, is_static);
}

}  // namespace
}  // namespace lamina::test
