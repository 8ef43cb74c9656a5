// gemm_int8's CUDA kernels on the twin, with buffers of exactly their size: under AddressSanitizer nothing
// is read or written beside them. Values are checked too, more of them in tests/ops.
#include "ops/gemm_int8/gemm_int8.h"

#include <cstring>
#include <vector>

#include "base/int_math.h"
#include "base/numeric.h"
#include "check.h"
#include "device/device.h"
#include "layout/int8_tile.h"
#include "memory.h"
#include "ops/gemm_int8/cuda/plan.h"
#include "ops/gemm_int8/pack.h"

namespace lamina::test {
namespace {

using gemm_int8::CudaKernel;
using gemm_int8::CudaPlan;
using gemm_int8::Params;

// A 16-byte aligned block of exactly `count` elements; malloc's own alignment.
template <class T>
using Exact = std::vector<T>;

constexpr int kSms = 3;

// Elements before the first row and between rows, which must stay as they are.
struct Output {
  DType dtype = DType::kF32;
  int64_t lead = 0, pad = 0;
};

template <class T>
void put(uint8_t* to, float value) {
  const T rounded = from_f32<T>(value);
  std::memcpy(to, &rounded, sizeof rounded);
}

void put(DType dtype, uint8_t* to, float value) {
  if (dtype == DType::kF32) return put<float>(to, value);
  if (dtype == DType::kF16) return put<F16>(to, value);
  put<BF16>(to, value);
}

void check_problem(const CudaKernel& kernel, int64_t m, int64_t n, int64_t k, int64_t pad,
                   int splits, const Output& output = {}) {
  Random random(static_cast<uint32_t>(m * 131 + n * 17 + k));
  const int64_t a_stride = k + pad;
  Exact<int8_t> a(static_cast<size_t>((m - 1) * a_stride + k)), w(static_cast<size_t>(n * k));
  for (int8_t& value : a) value = random.int8();
  for (int8_t& value : w) value = random.int8();
  Exact<int8_t> packed(static_cast<size_t>(*int8_tile::packed_bytes(n, k)));
  const gemm_int8::Problem problem{m, n, k, kernel.is_grouped};
  Exact<int32_t> sums(static_cast<size_t>(kernel.is_grouped ? problem.groups() * n : n));
  CHECK(gemm_int8::pack(w.data(), problem, k, packed.data(), sums.data(), Serial()).is_ok());
  const int64_t out_stride = n + output.pad, element = size_bytes(output.dtype);
  Exact<uint8_t> out(static_cast<size_t>((output.lead + (m - 1) * out_stride + n) * element), 0xa5);
  Exact<uint8_t> want = out;
  const auto place_of = [&](Exact<uint8_t>& bytes, int64_t i, int64_t j) {
    return bytes.data() + (output.lead + i * out_stride + j) * element;
  };
  const float scale = 0x1p-3f, one = 1;
  Params params;
  params.problem = problem;
  params.a = a.data();
  params.a_stride = a_stride;
  params.w = packed.data();
  params.w_sums = sums.data();
  params.a_scale = {&scale, 0};
  params.w_scale = {&one, 0};
  params.out = place_of(out, 0, 0);
  params.out_stride = out_stride;
  params.out_dtype = output.dtype;
  if (gemm_int8::row_alignment(params) < kernel.a_alignment) return;
  const int64_t steps = std::max<int64_t>(1, ceil_div(k, kernel.step_k));
  CudaPlan plan;
  plan.kernel = kernel;
  plan.sms = kSms;
  plan.is_capped = k % 2 == 0;
  const int64_t each =
      round_up(ceil_div(steps, splits), kernel.is_grouped ? gemm_int8::kSegmentGroups : 1);
  plan.split = {static_cast<int>(ceil_div(steps, each)), static_cast<int>(each), nullptr};
  Exact<int32_t> workspace(static_cast<size_t>(plan.workspace_bytes(params.problem) / 4), -7);
  const Status status = gemm_int8::run_cuda(params, plan, workspace.data(), nullptr);
  at(kernel.name, " ", m, " x ", n, " x ", k, ", pads ", pad, " ", output.pad, ", lead ",
     output.lead, ", splits ", splits, ": ", status.message());
  CHECK(status.is_ok());
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      int32_t sum = 0;
      for (int64_t p = 0; p < k; ++p)
        sum += a[static_cast<size_t>(i * a_stride + p)] * w[static_cast<size_t>(j * k + p)];
      put(output.dtype, place_of(want, i, j), static_cast<float>(sum) * scale);
    }
  for (size_t byte = 0; byte < want.size(); ++byte) CHECK_EQ(out[byte], want[byte]);
}

TEST(gemm_int8_on_the_twin_stays_in_its_buffers) {
  dev::emu::options() = {};
  for (const CudaKernel& kernel : gemm_int8::cuda_kernels())
    for (int64_t m : {1, 7, 18})
      for (int64_t n : {1, 24, 35})
        for (int64_t k : {1, 61, 64, 300})
          // Rows that allow copies of 16 bytes, of 4, and of 1.
          for (int64_t pad : {(16 - k % 16) % 16, (4 - k % 4) % 4 + 4, (k + 1) % 2 + int64_t{2}})
            if ((m + n + k + pad) % 3 == 0)
              check_problem(kernel, m, n, kernel.is_grouped ? k * 4 : k, pad, k == 300 ? 2 : 1);
}

// Rows that TMA can store, some of which end within a box, and rows whose base or stride it refuses.
TEST(gemm_int8_on_the_twin_stores_rows_of_any_stride) {
  dev::emu::options() = {};
  struct Rows {
    int64_t n, lead, pad;
  };
  for (const CudaKernel& kernel : gemm_int8::cuda_kernels())
    for (const Rows& rows : {Rows{24, 0, 0}, {72, 8, 8}, {35, 0, 5}, {24, 0, 4}, {40, 1, 8}})
      for (int64_t m : {1, 70})
        check_problem(kernel, m, rows.n, kernel.is_grouped ? 256 : 64, 0, 1,
                      {(rows.n + m) % 2 ? DType::kF16 : DType::kBF16, rows.lead, rows.pad});
}

TEST(gemm_int8_on_the_twin_uses_few_blocks_for_much_work) {
  dev::emu::options() = {};
  for (const CudaKernel& kernel : gemm_int8::cuda_kernels()) {
    dev::emu::reset_report();
    const int64_t k = kernel.is_grouped ? 1100 : 300;
    check_problem(kernel, 100, 40, k, 4, 2);  // the reduction alone would be four blocks
    CHECK_EQ(dev::emu::report().launches, 2);
    CHECK(dev::emu::report().most_blocks <= kSms);
  }
}

}  // namespace
}  // namespace lamina::test
