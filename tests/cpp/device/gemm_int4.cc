// gemm_int4's and gemm_int4_int8's CUDA kernels on the twin, with buffers of exactly their size: under AddressSanitizer
// nothing is read or written beside them. Values are small enough for every sum to be exact; more of them in tests/ops.
#include "ops/gemm_int4/gemm_int4.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/int_math.h"
#include "base/numeric.h"
#include "check.h"
#include "device/device.h"
#include "layout/int4_tile.h"
#include "memory.h"
#include "ops/gemm_int4/cuda/plan.h"
#include "ops/gemm_int4/pack.h"
#include "ops/gemm_int4_int8/cuda/plan.h"

namespace lamina::test {
namespace {

using gemm_int4::OfGroups, gemm_int4::Perm, gemm_int4::Problem;

// A 16-byte aligned block of exactly `count` elements; malloc's own alignment.
template <class T>
using Exact = std::vector<T>;

constexpr int kSms = 3;
constexpr float kScale = 0x1p-3f;

template <class T>
Exact<T> made(int64_t count, const auto& next) {
  Exact<T> all(static_cast<size_t>(count));
  for (T& value : all) value = next();
  return all;
}

// One problem of either op, and its result.
struct Case {
  int64_t m, n, k, group, pad;  // pad: elements between rows of a
  bool has_zeros, has_perm;
  int splits;

  int64_t features() const { return has_perm ? k + 3 : k; }
  Problem problem() const { return {m, n, k, group}; }
};

struct Inputs {
  Exact<int8_t> a;  // of -3 to 3
  Exact<uint8_t> q, packed, zeros;
  Exact<F16> scales;
  Exact<int32_t> perm;
  Exact<float> want;

  explicit Inputs(const Case& c) {
    Random random(static_cast<uint32_t>(c.m * 131 + c.n * 17 + c.k));
    const auto below = [&](int count) { return static_cast<uint8_t>(random.int8()) % count; };
    const int64_t groups = c.problem().groups(), stride = c.features() + c.pad;
    a = made<int8_t>((c.m - 1) * stride + c.features(),
                     [&] { return static_cast<int8_t>(below(7) - 3); });
    q = made<uint8_t>(c.n * c.k, [&] { return static_cast<uint8_t>(below(16)); });
    packed.resize(static_cast<size_t>(*int4::packed_bytes(c.n, c.k)));
    CHECK(gemm_int4::pack(q.data(), c.n, c.k, c.k, int4::tile_place, packed.data(), Serial())
              .is_ok());
    scales.assign(static_cast<size_t>(groups * c.n), from_f32<F16>(kScale));
    if (c.has_zeros)
      zeros = made<uint8_t>(groups * c.n, [&] { return static_cast<uint8_t>(below(16)); });
    if (c.has_perm)
      perm = made<int32_t>(c.k, [&] { return below(static_cast<int>(c.features()) + 1) - 1; });
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < c.n; ++j) {
        int64_t sum = 0;
        for (int64_t p = 0; p < c.k; ++p) {
          const int64_t from = c.has_perm ? perm[static_cast<size_t>(p)] : p;
          const int zero = c.has_zeros ? int{zeros[static_cast<size_t>(p / c.group * c.n + j)]} : 8;
          if (from >= 0)
            sum += a[static_cast<size_t>(i * stride + from)] *
                   (int{q[static_cast<size_t>(j * c.k + p)]} - zero);
        }
        want.push_back(static_cast<float>(sum) * kScale);
      }
  }

  template <class Params>
  void give(const Case& c, Params& params, Exact<float>& out) const {
    params.problem = c.problem();
    params.a_stride = c.features() + c.pad;
    if (c.has_perm) params.perm = {perm.data(), c.features()};
    params.w = packed.data();
    params.w_scale = {scales.data(), OfGroups::Kind::kF16, c.n, 1};
    if (c.has_zeros) params.w_zero_point = {zeros.data(), OfGroups::Kind::kU8, c.n, 1};
    params.out = out.data();
    params.out_stride = c.n;
    params.out_dtype = DType::kF32;
  }
};

template <class Plan, class Kernel>
Plan plan_of(const Kernel& kernel, const Case& c, int64_t segment_k) {
  Plan plan;
  plan.kernel = kernel;
  plan.sms = kSms;
  plan.is_capped = c.k % 2 == 0;
  const int64_t segments = std::max<int64_t>(1, ceil_div(c.k, segment_k));
  const int64_t each = ceil_div(segments, c.splits);
  plan.split = {static_cast<int>(ceil_div(segments, each)),
                static_cast<int>(each * (segment_k / kernel.step_k)), nullptr};
  return plan;
}

void check_result(const char* kernel, const Case& c, const Status& status, const Exact<float>& out,
                  const Inputs& inputs) {
  at(kernel, " ", c.m, " x ", c.n, " x ", c.k, ", groups of ", c.group, ", pad ", c.pad, ", zeros ",
     c.has_zeros, ", perm ", c.has_perm, ", splits ", c.splits, ": ", status.message());
  CHECK(status.is_ok());
  for (size_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], inputs.want[i]);
}

void check_floats(const Case& c, const Inputs& inputs) {
  Exact<F16> a;
  for (const int8_t value : inputs.a) a.push_back(from_f32<F16>(value));
  for (const gemm_int4::CudaKernel& kernel : gemm_int4::cuda_kernels()) {
    Exact<float> out(inputs.want.size(), -1.0f);
    gemm_int4::Params params;
    inputs.give(c, params, out);
    params.a = a.data();
    params.a_dtype = DType::kF16;
    const auto plan = plan_of<gemm_int4::CudaPlan>(kernel, c, gemm_int4::kSegmentK);
    Exact<float> workspace(static_cast<size_t>(plan.workspace_bytes(c.problem()) / 4), -7.0f);
    check_result(kernel.name, c, gemm_int4::run_cuda(params, plan, workspace.data(), nullptr), out,
                 inputs);
  }
}

void check_int8(const Case& c, const Inputs& inputs) {
  const float one = 1;
  for (const gemm_int4_int8::CudaKernel& kernel : gemm_int4_int8::cuda_kernels()) {
    Exact<float> out(inputs.want.size(), -1.0f);
    gemm_int4_int8::Params params;
    inputs.give(c, params, out);
    params.a = inputs.a.data();
    params.a_scale = {&one, 0};
    const auto plan =
        plan_of<gemm_int4_int8::CudaPlan>(kernel, c, gemm_int4_int8::split_k(c.problem()));
    Exact<uint8_t> workspace(static_cast<size_t>(plan.workspace_bytes(c.problem())), 0xf9);
    check_result(kernel.name, c,
                 gemm_int4_int8::run_cuda(params, std::nullopt, plan, workspace.data(), nullptr),
                 out, inputs);
  }
}

void check_problem(const Case& c) {
  dev::emu::options() = {};
  const Inputs inputs(c);
  check_floats(c, inputs);
  check_int8(c, inputs);
}

TEST(int4_on_the_twin_stays_in_its_buffers) {
  for (int64_t m : {1, 18, 70})
    for (int64_t n : {1, 24, 130})
      for (int64_t k : {1, 61, 64, 300})
        // Rows that allow copies of 16 bytes, of 4, and of 1 (f16).
        for (int64_t pad :
             {(8 - k % 8) % 8, (2 - k % 2) % 2 + int64_t{2}, (k + 1) % 2 + int64_t{2}})
          if ((m + n + k + pad) % 7 == 0)
            check_problem({m, n, k, n % 16 == 8 ? 48 : 64, pad, m == 18, n == 24, 1});
}

TEST(int4_on_the_twin_splits_k) {
  for (int64_t group : {64, 48, 2112})
    check_problem({5, 140, 2100, group, 4, group == 64, group == 48, 2});
}

}  // namespace
}  // namespace lamina::test
