// The CUDA kernels of rms_norm, silu_mul and their int8 forms on the emulator, with buffers of exactly their size, so that
// AddressSanitizer sees an access beside them. They round like the CPU kernels, which have their own tests.
#include "check.h"
#include "device/device.h"
#include "int8_results.h"
#include "operand.h"
#include "ops/rms_norm/rms_norm.h"
#include "ops/silu_mul/silu_mul.h"
#include "threads.h"

namespace lamina::test {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

using Bytes = Exact<uint8_t>;

void check_equal_bytes(Bytes& got, Bytes& want) {
  for (int64_t i = 0; i < want.count(); ++i) CHECK_EQ(got[i], want[i]);
}

void check_rms_norm(int64_t m, int64_t n, int64_t pad, DType dtype, bool has_residual) {
  Random random(static_cast<uint64_t>(m * 100 + n));
  FloatRows x(dtype, m, n, pad, random), residual(dtype, m, n, 3, random),
      weight(dtype, 1, n, 0, random);
  rms_norm::Params params;
  params.m = m, params.n = n;
  params.dtype = dtype;
  params.x = x.data();
  params.x_stride = n + pad;
  params.weight = weight.data();
  params.eps = 1e-5f;
  if (has_residual) params.residual = residual.data();
  params.residual_stride = n + 3;
  at("rms_norm ", m, " x ", n, " + ", pad, ", dtype ", static_cast<int>(dtype), ", residual ",
     has_residual);
  const int64_t bytes = m * n * size_bytes(dtype);
  Bytes got(bytes), want(bytes), got_z(has_residual ? bytes : 0), want_z(got_z.count());
  params.out = got.data(), params.new_residual = got_z.data();
  CHECK(rms_norm::run_cuda(params, 2, nullptr).is_ok());
  params.out = want.data(), params.new_residual = want_z.data();
  CHECK(rms_norm::run(params, Serial()).is_ok());
  check_equal_bytes(got, want);
  check_equal_bytes(got_z, want_z);
  Int8Results got_q(m, n, has_residual), want_q(m, n, has_residual);
  params.out = nullptr;
  params.quantized = got_q.rows();
  CHECK(rms_norm::run_cuda(params, 2, nullptr).is_ok());
  params.quantized = want_q.rows();
  CHECK(rms_norm::run(params, Serial()).is_ok());
  check_same(got_q, want_q, m, n);
}

void check_silu_mul(int64_t m, int64_t n, int64_t pad, DType dtype) {
  Random random(static_cast<uint64_t>(m * 100 + n));
  FloatRows gate(dtype, m, n, pad, random), up(dtype, m, n, 3, random);
  silu_mul::Params params;
  params.m = m, params.n = n;
  params.dtype = dtype;
  params.gate = gate.data(), params.up = up.data();
  params.gate_stride = n + pad, params.up_stride = n + 3;
  at("silu_mul ", m, " x ", n, " + ", pad, ", dtype ", static_cast<int>(dtype));
  Bytes got(m * n * size_bytes(dtype)), want(got.count());
  params.out = got.data();
  CHECK(silu_mul::run_cuda(params, 2, nullptr).is_ok());
  params.out = want.data();
  CHECK(silu_mul::run(params, Serial()).is_ok());
  check_equal_bytes(got, want);
  Int8Results got_q(m, n, pad == 0), want_q(m, n, pad == 0);
  params.quantized = got_q.rows();
  CHECK(silu_mul::run_cuda(params, 2, nullptr).is_ok());
  params.quantized = want_q.rows();
  CHECK(silu_mul::run(params, Serial()).is_ok());
  check_same(got_q, want_q, m, n);
}

TEST(rms_norm_and_silu_mul_on_the_emulator_stay_in_their_buffers) {
  dev::emu::options() = {};
  for (DType dtype : kDTypes)
    for (int64_t n : {1, 7, 64, 1029, 2050})
      for (int64_t pad : {int64_t{0}, (8 - n % 8) % 8, int64_t{3}}) {
        const int64_t m = n == 64 ? 5 : 1 + n % 3;
        check_rms_norm(m, n, pad, dtype, false);
        check_rms_norm(m, n, pad, dtype, true);
        check_silu_mul(m, n, pad, dtype);
      }
}

}  // namespace
}  // namespace lamina::test
