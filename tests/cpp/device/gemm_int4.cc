// The CUDA kernels of gemm_int4 and gemm_int4_int8 on the emulator, with buffers of exactly their size, so that
// AddressSanitizer sees an access beside them. Values are small enough for every sum to be exact; tests/ops has more
// values.
#include "ops/gemm_int4/gemm_int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "base/int_math.h"
#include "check.h"
#include "device/device.h"
#include "layout/int4.h"
#include "operand.h"
#include "ops/gemm_int4/cuda/run.h"
#include "ops/gemm_int4/pack.h"
#include "ops/gemm_int4_int8/cuda/run.h"

namespace lamina::test {
namespace {

using gemm::Problem;

constexpr int kSms = 3;

// One problem for either op.
struct Case {
  int64_t m, n, k, group, pad;  // pad: elements between rows of a
  bool has_zeros, has_perm;
  int splits;

  int64_t features() const { return has_perm ? k + 3 : k; }
  Problem problem() const { return {m, n, k, group}; }
};

// A scale or a zero point for each group and column, of any kind.
struct Groups {
  GroupTensor::Kind kind;
  Exact<uint8_t> bytes;
  std::vector<float> value;
  int64_t columns;

  Groups(GroupTensor::Kind kind_of, const Problem& p, const auto& next)
      : kind(kind_of), bytes(p.groups() * p.n * size()), columns(p.n) {
    for (int64_t i = 0; i < p.groups() * p.n; ++i) {
      value.push_back(next(i));
      uint8_t* const to = bytes.data() + i * size();
      if (kind == GroupTensor::Kind::kU8) {
        *to = static_cast<uint8_t>(value.back());
      } else {
        put(kind == GroupTensor::Kind::kF32   ? DType::kF32
            : kind == GroupTensor::Kind::kF16 ? DType::kF16
                                              : DType::kBF16,
            to, value.back());
      }
    }
  }

  int64_t size() const {
    return kind == GroupTensor::Kind::kU8 ? 1 : kind == GroupTensor::Kind::kF32 ? 4 : 2;
  }
  float at(int64_t group, int64_t j) const {
    return value[static_cast<size_t>(group * columns + j)];
  }
  GroupTensor given() { return {bytes.data(), kind, columns, 1}; }
};

// The operands of a problem. Scales are powers of two and numbers small enough for all sums to be exact.
struct Inputs {
  Case c;
  Random random;
  Exact<int8_t> a, a_zero;  // from -3 to 3
  Exact<uint8_t> q, packed;
  Exact<int32_t> perm;
  Exact<float> a_scale;
  Groups scales, zeros;
  Followed then;

  Inputs(const Case& problem, GroupTensor::Kind scale_kind, GroupTensor::Kind zero_kind)
      : c(problem),
        random(static_cast<uint64_t>(c.m * 131 + c.n * 17 + c.k)),
        a((c.m - 1) * (c.features() + c.pad) + c.features()),
        a_zero(c.m),
        q(c.n * c.k),
        packed(*int4::packed_bytes(c.n, c.k)),
        perm(c.has_perm ? c.k : 0),
        a_scale(c.m),
        scales(scale_kind, c.problem(), [](int64_t i) { return i % 3 == 0 ? -0x1p-3f : 0x1p-4f; }),
        zeros(zero_kind, c.problem(), [this](int64_t) { return static_cast<float>(below(16)); }),
        then(c.m, c.n, c.k, random) {
    for (int64_t i = 0; i < a.count(); ++i) a[i] = static_cast<int8_t>(below(7) - 3);
    for (int64_t i = 0; i < c.m; ++i) {
      a_zero[i] = static_cast<int8_t>(below(5) - 2);
      a_scale[i] = std::ldexp(1.0f, below(3) - 1);
    }
    for (int64_t i = 0; i < q.count(); ++i) q[i] = static_cast<uint8_t>(below(16));
    for (int64_t i = 0; i < perm.count(); ++i)
      perm[i] = below(static_cast<int>(c.features()) + 1) - 1;
    CHECK(gemm_int4::pack(q.data(), c.n, c.k, c.k, int4::tile_place, packed.data(), Serial())
              .is_ok());
  }

  int below(int count) { return static_cast<int>(random.next() % static_cast<uint32_t>(count)); }

  // The results; with is_int8, with the scales and zero points of int8 rows.
  std::vector<float> want(bool is_int8) {
    std::vector<float> all;
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < c.n; ++j) all.push_back(want_at(i, j, is_int8));
    return all;
  }

  float want_at(int64_t i, int64_t j, bool is_int8) {
    float sum = 0;
    for (int64_t p = 0; p < c.k; ++p) {
      const int64_t from = c.has_perm ? perm[p] : p, group = p / c.group;
      const float zero = c.has_zeros ? zeros.at(group, j) : 8.0f;
      const int8_t a_less = is_int8 ? a_zero[i] : int8_t{0};
      if (from >= 0)
        sum += static_cast<float>(a[i * (c.features() + c.pad) + from] - a_less) *
               (static_cast<float>(q[j * c.k + p]) - zero) * scales.at(group, j);
    }
    return then.after(is_int8 ? sum * a_scale[i] : sum, i, j);
  }

  template <class Params>
  Params params(Exact<float>& out) {
    Params params;
    params.problem = c.problem();
    params.a_stride = c.features() + c.pad;
    if (c.has_perm) params.perm = {perm.data(), c.features()};
    params.w = packed.data();
    params.w_scale = scales.given();
    if (c.has_zeros) params.w_zero_point = zeros.given();
    then.give(params);
    params.out = out.data();
    params.out_stride = c.n;
    params.out_dtype = DType::kF32;
    return params;
  }
};

gemm::CudaPlan plan_of(const gemm::CudaKernel& kernel, const Case& c, const gemm::KRule& rule) {
  gemm::CudaPlan plan;
  plan.kernel = kernel;
  plan.sms = kSms;
  plan.is_capped = c.k % 2 == 0;
  const int64_t k_chunks = std::max<int64_t>(1, ceil_div(c.k, rule.chunk_k));
  const int64_t each = ceil_div(k_chunks, c.splits);
  plan.split = {static_cast<int>(ceil_div(k_chunks, each)),
                static_cast<int>(each * (rule.chunk_k / kernel.step_k))};
  if (plan.split.count > 1) plan.partials = rule.one_each ? k_chunks : plan.split.count;
  return plan;
}

// Calls run(out, workspace) with both poisoned, and checks out.
void check_run(const char* kernel, int64_t workspace_bytes, const Case& c,
               const std::vector<float>& want, const auto& run) {
  Exact<float> out(c.m * c.n);
  Exact<uint8_t> workspace(workspace_bytes);
  std::memset(out.data(), kPoison, want.size() * 4);
  std::memset(workspace.data(), kPoison, static_cast<size_t>(workspace.count()));
  const Status status = run(out, workspace.data());
  at(kernel, " ", c.m, " x ", c.n, " x ", c.k, ", groups of ", c.group, ", pad ", c.pad, ", zeros ",
     c.has_zeros, ", perm ", c.has_perm, ", splits ", c.splits, ": ", status.message());
  CHECK(status.is_ok());
  for (int64_t i = 0; i < out.count(); ++i) CHECK_EQ(out[i], want[static_cast<size_t>(i)]);
}

void check_floats(const Case& c) {
  const DType dtype = c.m % 2 == 0 ? DType::kBF16 : DType::kF16;
  const auto kind = dtype == DType::kF16 ? GroupTensor::Kind::kF16 : GroupTensor::Kind::kBF16;
  Inputs inputs(c, kind, c.n % 2 == 0 ? kind : GroupTensor::Kind::kU8);
  const std::vector<float> want = inputs.want(false);
  Exact<uint8_t> a(inputs.a.count() * 2);
  for (int64_t i = 0; i < inputs.a.count(); ++i)
    put(dtype, a.data() + i * 2, static_cast<float>(inputs.a[i]));
  for (const gemm::CudaKernel& kernel : gemm_int4::cuda_op().kernels) {
    const auto plan = plan_of(kernel, c, gemm_int4::k_rule(c.problem()));
    check_run(kernel.name, plan.partial_bytes(c.problem()), c, want,
              [&](Exact<float>& out, void* workspace) {
                auto params = inputs.params<gemm_int4::Params>(out);
                params.a = a.data();
                params.a_dtype = dtype;
                return gemm_int4::run_cuda(params, plan, workspace, nullptr);
              });
  }
}

void check_int8(const Case& c) {
  using enum GroupTensor::Kind;
  Inputs inputs(c, c.k % 3 == 0 ? kF32 : c.k % 3 == 1 ? kF16 : kBF16, c.n % 2 == 0 ? kF32 : kU8);
  const std::vector<float> want = inputs.want(true);
  for (const gemm::CudaKernel& kernel : gemm_int4_int8::cuda_op().kernels) {
    const auto plan = plan_of(kernel, c, gemm_int4_int8::k_rule(c.problem()));
    check_run(kernel.name, gemm_int4_int8::workspace_bytes(c.problem(), plan), c, want,
              [&](Exact<float>& out, void* workspace) {
                auto params = inputs.params<gemm_int4_int8::Params>(out);
                params.a = inputs.a.data();
                params.a_scale = {inputs.a_scale.data(), 1};
                params.a_zero_point = {inputs.a_zero.data(), 1};
                return gemm_int4_int8::run_cuda(params, plan, workspace, nullptr);
              });
  }
}

// The call quantises rows of floats. tests/ops checks the values.
void check_quantised(const Case& c) {
  Inputs inputs(c, GroupTensor::Kind::kF32, GroupTensor::Kind::kU8);
  for (DType dtype : {DType::kF32, DType::kF16}) {
    FloatRows a(dtype, c.m, c.features(), c.pad, inputs.random);
    const auto& kernel = gemm_int4_int8::cuda_op().kernels.front();
    const auto plan = plan_of(kernel, c, gemm_int4_int8::k_rule(c.problem()));
    Exact<float> out(c.m * c.n);
    Exact<uint8_t> workspace(gemm_int4_int8::workspace_bytes(c.problem(), plan));
    auto params = inputs.params<gemm_int4_int8::Params>(out);
    params.has_floats = true;
    params.floats = a.data();
    params.floats_dtype = dtype;
    CHECK(gemm_int4_int8::run_cuda(params, plan, workspace.data(), nullptr).is_ok());
  }
}

void check_problem(const Case& c) {
  dev::emu::options() = {};
  check_floats(c);
  check_int8(c);
  check_quantised(c);
}

TEST(int4_on_the_emulator_stays_in_its_buffers) {
  // The strides k + pad allow copies of 16 bytes, of 4 bytes, and of 1 byte (f16).
  constexpr int64_t kShapes[][4] = {{1, 24, 61, 2},    {18, 1, 1, 3},   {18, 130, 300, 4},
                                    {70, 130, 300, 3}, {70, 24, 64, 0}, {1, 130, 64, 2}};
  for (auto [m, n, k, pad] : kShapes)
    check_problem({m, n, k, n % 16 == 8 ? 48 : 64, pad, m == 18, n == 24, 1});
}

// The rows of the result lie gigabytes apart, and many blocks store them.
TEST(int4_on_the_emulator_stores_rows_far_apart) {
  dev::emu::options() = {};
  constexpr int64_t kStride = (int64_t{1} << 27) + 16;
  const Case c{67, 24, 64, 16, 0, false, false, 1};
  Inputs inputs(c, GroupTensor::Kind::kF32, GroupTensor::Kind::kU8);
  const std::vector<float> want = inputs.want(true);
  Exact<float> unused(0);
  Sparse out(((c.m - 1) * kStride + c.n) * 4);
  if (!out.is_mapped()) return;
  auto params = inputs.params<gemm_int4_int8::Params>(unused);
  params.a = inputs.a.data();
  params.a_scale = {inputs.a_scale.data(), 1};
  params.a_zero_point = {inputs.a_zero.data(), 1};
  params.out = out.as<float>();
  params.out_stride = kStride;
  for (const gemm::CudaKernel& kernel : gemm_int4_int8::cuda_op().kernels) {
    const auto plan = plan_of(kernel, c, gemm_int4_int8::k_rule(c.problem()));
    Exact<uint8_t> workspace(gemm_int4_int8::workspace_bytes(c.problem(), plan));
    at(kernel.name);
    CHECK(gemm_int4_int8::run_cuda(params, plan, workspace.data(), nullptr).is_ok());
    for (int64_t i = 0; i < c.m; ++i)
      for (int64_t j = 0; j < c.n; ++j)
        CHECK_EQ(out.as<float>()[i * kStride + j], want[static_cast<size_t>(i * c.n + j)]);
  }
}

TEST(int4_on_the_emulator_splits_k) {
  for (int64_t group : {64, 48, 2112})
    check_problem({5, 72, 2100, group, 4, group == 64, group == 48, 2});
}

}  // namespace
}  // namespace lamina::test
