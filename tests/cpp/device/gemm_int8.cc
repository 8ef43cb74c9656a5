// The CUDA kernels of gemm_int8 on the emulator, with buffers of exactly their size, so that AddressSanitizer sees an
// access beside them. Values are checked too; tests/ops has more values.
#include "ops/gemm_int8/gemm_int8.h"

#include <cfloat>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/int_math.h"
#include "check.h"
#include "device/device.h"
#include "int8.h"
#include "ops/gemm_int8/cuda/run.h"

namespace lamina::test {
namespace {

using gemm::CudaPlan;
using gemm_int8::Params;

constexpr int kSms = 3;

// The place of the result: elements before the first row and between rows must stay unchanged.
struct Place {
  DType dtype = DType::kF32;
  int64_t lead = 0, pad = 0;
};

// A kernel, and whether it is for scales along k.
struct Int8Kernel : gemm::CudaKernel {
  bool is_grouped;

  int64_t group() const { return is_grouped ? gemm_int8::kScaleGroup : 0; }
};

std::vector<Int8Kernel> kernels() {
  std::vector<Int8Kernel> all;
  for (bool is_grouped : {false, true})
    for (const gemm::CudaKernel& kernel : gemm_int8::cuda_op(is_grouped).kernels)
      all.push_back({kernel, is_grouped});
  return all;
}

CudaPlan plan_of(const Int8Kernel& kernel, int64_t k, int splits) {
  CudaPlan plan;
  plan.kernel = kernel;
  plan.sms = kSms;
  plan.is_capped = k % 2 == 0;
  const int64_t steps = std::max<int64_t>(1, ceil_div(k, kernel.step_k));
  const int64_t each =
      round_up(ceil_div(steps, splits), kernel.is_grouped ? gemm_int8::kChunkGroups : 1);
  plan.split = {static_cast<int>(ceil_div(steps, each)), static_cast<int>(each)};
  if (plan.split.count > 1)
    plan.partials =
        kernel.is_grouped ? gemm_int8::k_chunks({0, 0, k, kernel.group()}) : plan.split.count;
  return plan;
}

void check_problem(const Int8Kernel& kernel, int64_t m, int64_t n, int64_t k, int64_t pad,
                   int splits, const Place& output = {}) {
  Int8Inputs inputs({m, n, k, kernel.group()}, pad, static_cast<uint64_t>(m * 131 + n * 17 + k));
  const int64_t out_stride = n + output.pad, element = size_bytes(output.dtype);
  Exact<uint8_t> out((output.lead + (m - 1) * out_stride + n) * element), want(out.count());
  std::memset(out.data(), 0xa5, static_cast<size_t>(out.count()));
  std::memset(want.data(), 0xa5, static_cast<size_t>(out.count()));
  const auto place_of = [&](Exact<uint8_t>& bytes, int64_t i, int64_t j) {
    return bytes.data() + (output.lead + i * out_stride + j) * element;
  };
  const Params params = inputs.params(place_of(out, 0, 0), out_stride, output.dtype);
  if (gemm_int8::a_alignment(params) < kernel.a_alignment) return;
  const CudaPlan plan = plan_of(kernel, k, splits);
  Exact<uint8_t> workspace(plan.partial_bytes(params.problem));
  std::memset(workspace.data(), 0xf9, static_cast<size_t>(workspace.count()));
  const Status status = gemm_int8::run_cuda(params, plan, workspace.data(), nullptr);
  at(kernel.name, " ", m, " x ", n, " x ", k, ", pads ", pad, " ", output.pad, ", lead ",
     output.lead, ", splits ", splits, ": ", status.message());
  CHECK(status.is_ok());
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) put(output.dtype, place_of(want, i, j), inputs.expected(i, j));
  for (int64_t byte = 0; byte < want.count(); ++byte) CHECK_EQ(out[byte], want[byte]);
}

// Checks that q is the row y quantised with this scale.
void check_quantized(const std::vector<float>& y, float scale, const int8_t* q) {
  const float inverse = 1.0f / scale;
  for (size_t j = 0; j < y.size(); ++j) {
    const float step = std::rint(y[j] * inverse);
    CHECK_EQ(int{q[j]}, static_cast<int>(std::fmin(std::fmax(step, -127.0f), 127.0f)));
  }
}

// Requantises rows, with static scales or with a scale for each row.
void check_requantized(const Int8Kernel& kernel, int64_t m, int64_t n, bool is_static) {
  Int8Inputs inputs({m, n, 64, kernel.group()}, 0, static_cast<uint64_t>(m * 131 + n));
  Exact<float> given(m), scale(m);
  Exact<int8_t> q(m * n);
  for (int64_t i = 0; i < m; ++i) given[i] = std::ldexp(1.0f, static_cast<int>(i % 3) - 4);
  gemm_int8::QuantizedParams params;
  params.gemm = inputs.params(nullptr, n, DType::kF32);
  params.quantize.m = m;
  params.quantize.k = n;
  params.quantize.q = q.data();
  params.quantize.scale = scale.data();
  if (is_static) params.quantize.static_scale = {given.data(), 1};
  Exact<uint8_t> rows(params.workspace_bytes());
  params.connect(rows.data());
  const Status status = run_quantized_cuda(params, plan_of(kernel, 64, 1), nullptr, nullptr);
  at(kernel.name, " requantises ", m, " x ", n, ", static ", is_static, ": ", status.message());
  CHECK(status.is_ok());
  for (int64_t i = 0; i < m; ++i) {
    std::vector<float> y;
    float largest = 0;
    for (int64_t j = 0; j < n; ++j) {
      y.push_back(inputs.expected(i, j));
      largest = std::fmax(largest, std::fabs(y.back()));
    }
    CHECK_EQ(scale[i], is_static ? given[i] : std::fmax(largest / 127.0f, FLT_MIN));
    check_quantized(y, scale[i], q.data() + i * n);
  }
}

TEST(gemm_int8_on_the_emulator_stays_in_its_buffers) {
  dev::emu::options() = {};
  for (const Int8Kernel& kernel : kernels())
    for (int64_t m : {1, 7, 18})
      for (int64_t n : {1, 24, 35})
        for (int64_t k : {1, 61, 64, 300})
          // The strides allow copies of 16 bytes, of 4 bytes, and of 1 byte.
          for (int64_t pad : {(16 - k % 16) % 16, (4 - k % 4) % 4 + 4, (k + 1) % 2 + int64_t{2}})
            if ((m + n + k + pad) % 3 == 0)
              check_problem(kernel, m, n, kernel.is_grouped ? k * 4 : k, pad, k == 300 ? 2 : 1);
}

// TMA can store some of these rows, which may end within a box; it refuses the base or the stride of the others.
TEST(gemm_int8_on_the_emulator_stores_rows_of_any_stride) {
  dev::emu::options() = {};
  struct Rows {
    int64_t n, lead, pad;
  };
  for (const Int8Kernel& kernel : kernels())
    for (const Rows& rows : {Rows{24, 0, 0}, {72, 8, 8}, {35, 0, 5}, {24, 0, 4}, {40, 1, 8}})
      for (int64_t m : {1, 70})
        check_problem(kernel, m, rows.n, kernel.is_grouped ? 256 : 64, 0, 1,
                      {(rows.n + m) % 2 ? DType::kF16 : DType::kBF16, rows.lead, rows.pad});
}

TEST(gemm_int8_on_the_emulator_requantises_in_its_buffers) {
  dev::emu::options() = {};
  for (const Int8Kernel& kernel : kernels())
    for (int64_t n : {5, 48})
      for (bool is_static : {false, true}) check_requantized(kernel, 18, n, is_static);
}

// The rows of the result lie gigabytes apart, and many blocks store them.
TEST(gemm_int8_on_the_emulator_stores_rows_far_apart) {
  dev::emu::options() = {};
  constexpr int64_t kM = 67, kN = 24, kStride = (int64_t{1} << 27) + 16;
  for (const Int8Kernel& kernel : kernels())
    for (int splits : {1, 2}) {
      const int64_t k = kernel.is_grouped ? 1100 : 320;
      Int8Inputs inputs({kM, kN, k, kernel.group()}, (16 - k % 16) % 16, 5);
      Sparse out(((kM - 1) * kStride + kN) * 2);
      if (!out.is_mapped()) return;
      const Params params = inputs.params(out.as<BF16>(), kStride, DType::kBF16);
      const CudaPlan plan = plan_of(kernel, k, splits);
      Exact<uint8_t> workspace(plan.partial_bytes(params.problem));
      at(kernel.name, ", splits ", splits);
      CHECK(gemm_int8::run_cuda(params, plan, workspace.data(), nullptr).is_ok());
      for (int64_t i = 0; i < kM; ++i)
        for (int64_t j = 0; j < kN; ++j)
          CHECK_EQ(out.as<BF16>()[i * kStride + j].bits,
                   from_f32<BF16>(inputs.expected(i, j)).bits);
    }
}

TEST(partial_sums_beyond_2_to_31) {
  constexpr gemm::Problem kProblem{int64_t{1} << 20, (int64_t{1} << 12) - 3, 1};
  int32_t first = 0;
  gemm::Split split;
  split.partials = &first;
  const auto bytes_to = [&](int64_t partial, int64_t i, int64_t j) {
    const auto* const at = gemm::partial_at<int32_t>(split, kProblem, partial, i, j);
    return reinterpret_cast<intptr_t>(at) - reinterpret_cast<intptr_t>(&first);
  };
  CHECK_EQ(bytes_to(0, 1, 7), 4 * ((int64_t{1} << 12) + 7));
  CHECK_EQ(bytes_to(3, 5, 7), 4 * ((int64_t{3} << 32) + (int64_t{5} << 12) + 7));
}

TEST(gemm_int8_on_the_emulator_uses_few_blocks_for_much_work) {
  dev::emu::options() = {};
  for (const Int8Kernel& kernel : kernels()) {
    dev::emu::reset_report();
    const int64_t k = kernel.is_grouped ? 1100 : 300;
    check_problem(kernel, 100, 40, k, 4, 2);  // the reduction alone would be four blocks
    CHECK_EQ(dev::emu::report().launches, 2);
    CHECK(dev::emu::report().most_blocks <= kSms);
  }
}

}  // namespace
}  // namespace lamina::test
