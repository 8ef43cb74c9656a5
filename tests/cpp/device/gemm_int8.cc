// gemm_int8's CUDA kernels on the twin, with buffers of exactly their size: under AddressSanitizer nothing
// is read or written beside them. Values are checked too, more of them in tests/ops.
#include "ops/gemm_int8/gemm_int8.h"

#include <vector>

#include "base/int_math.h"
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

void check_problem(const CudaKernel& kernel, int64_t m, int64_t n, int64_t k, int64_t pad,
                   int splits) {
  at(kernel.name, " ", m, " x ", n, " x ", k, ", pad ", pad, ", splits ", splits);
  Random random(static_cast<uint32_t>(m * 131 + n * 17 + k));
  const int64_t a_stride = k + pad;
  Exact<int8_t> a(static_cast<size_t>((m - 1) * a_stride + k)), w(static_cast<size_t>(n * k));
  for (int8_t& value : a) value = random.int8();
  for (int8_t& value : w) value = random.int8();
  Exact<int8_t> packed(static_cast<size_t>(*int8_tile::packed_bytes(n, k)));
  const gemm_int8::Problem problem{m, n, k, kernel.is_grouped};
  Exact<int32_t> sums(static_cast<size_t>(kernel.is_grouped ? problem.groups() * n : n));
  CHECK(gemm_int8::pack(w.data(), problem, k, packed.data(), sums.data(), Serial()).is_ok());
  Exact<float> out(static_cast<size_t>(m * n), -1.0f);
  const float one = 1;
  Params params;
  params.problem = problem;
  params.a = a.data();
  params.a_stride = a_stride;
  params.w = packed.data();
  params.w_sums = sums.data();
  params.a_scale = params.w_scale = {&one, 0};
  params.out = out.data();
  params.out_stride = n;
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
  at(kernel.name, " ", m, " x ", n, " x ", k, ": ", status.message());
  CHECK(status.is_ok());
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      int32_t want = 0;
      for (int64_t p = 0; p < k; ++p)
        want += a[static_cast<size_t>(i * a_stride + p)] * w[static_cast<size_t>(j * k + p)];
      CHECK_EQ(out[static_cast<size_t>(i * n + j)], static_cast<float>(want));
    }
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
