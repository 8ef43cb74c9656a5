// Tests of gemm_int8 on every ISA against a plain loop, in memory whose guards show a stray byte.
#include <cmath>

#include "gemm/cpu/plan.h"
#include "gemm/epilogue_maths.h"
#include "int8.h"
#include "threads.h"

namespace lamina::test {
namespace {

using gemm::Problem;
using gemm_int8::Params;

bool is_poison(const void* value, int64_t bytes) {
  const auto* const at = static_cast<const uint8_t*>(value);
  return std::all_of(at, at + bytes, [](uint8_t byte) { return byte == kPoison; });
}

// Runs into NaN-poisoned rows with gaps between them, and checks that outputs are right and gaps and guards untouched.
template <class Out>
void check_run(Int8Inputs& inputs, DType dtype, const Parallel& parallel) {
  const int64_t m = inputs.problem.m, n = inputs.problem.n;
  const int64_t stride = n + 5;
  Guarded<Out> out(m * stride);
  const Status status = gemm_int8::run(inputs.params(out.data(), stride, dtype), parallel);
  CHECK(status.is_ok());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const Out want = from_f32<Out>(inputs.expected(i, j));
      if (std::memcmp(&out[i * stride + j], &want, sizeof want) != 0)
        fail(__FILE__, __LINE__,
             "output [" + std::to_string(i) + ", " + std::to_string(j) + "] is wrong");
    }
    CHECK(is_poison(&out[i * stride + n], 5 * static_cast<int64_t>(sizeof(Out))));
  }
  CHECK(out.guards_are_intact());
}

const Problem kProblems[] = {{1, 1, 1},      {0, 5, 7},     {3, 0, 5},      {3, 5, 0},
                             {1, 17, 65},    {2, 33, 127},  {5, 15, 63},    {6, 16, 64},
                             {7, 31, 129},   {16, 64, 64},  {17, 49, 191},  {33, 97, 77},
                             {40, 70, 1101}, {130, 33, 70}, {12, 130, 513}, {64, 128, 128}};

TEST(every_isa_equals_the_loop) {
  for (const Problem& problem : kProblems)
    for (uint32_t loud : {1, 8, 64, 1000}) {
      const int64_t extra = loud % 3;
      Int8Inputs inputs(problem, extra, 7, loud);
      for_each_isa([&](Isa isa) {
        at(isa_name(isa), " ", problem.m, " x ", problem.n, " x ", problem.k, " + ", extra,
           ", loud 1 in ", loud);
        check_run<float>(inputs, DType::kF32, Serial());
        check_run<F16>(inputs, DType::kF16, Backwards(3));
        check_run<BF16>(inputs, DType::kBF16, Threads(4));
      });
    }
}

TEST(scales_along_k) {
  constexpr int64_t kGroup = gemm_int8::kScaleGroup;
  for (const Problem& problem :
       {Problem{1, 17, 300, kGroup}, Problem{3, 5, 0, kGroup}, Problem{0, 5, 200, kGroup},
        Problem{7, 31, 1024, kGroup}, Problem{33, 70, 129, kGroup}, Problem{40, 33, 2200, kGroup}})
    for (uint32_t loud : {1u, 40u}) {
      Int8Inputs inputs(problem, 3, 11, loud);
      for_each_isa([&](Isa isa) {
        at(isa_name(isa), " ", problem.m, " x ", problem.n, " x ", problem.k, ", loud 1 in ", loud);
        check_run<float>(inputs, DType::kF32, Serial());
        check_run<BF16>(inputs, DType::kBF16, Threads(4));
      });
    }
}

TEST(missing_zero_point_and_bias_and_single_scales) {
  Int8Inputs inputs({7, 37, 70}, 0, 8);
  for (int64_t i = 0; i < 7; ++i) inputs.zero_point[i] = 0, inputs.a_scale[i] = inputs.a_scale[0];
  for (int64_t j = 0; j < 37; ++j) inputs.w_scale[j] = inputs.w_scale[0];
  Int8Inputs plain({7, 37, 70}, 0, 8);
  std::fill(plain.acc.begin(), plain.acc.end(), 0);
  for (int64_t i = 0; i < 7; ++i)
    for (int64_t j = 0; j < 37; ++j)
      for (int64_t q = 0; q < 70; ++q)
        plain.acc[static_cast<size_t>(i * 37 + j)] += plain.a[i * 70 + q] * plain.w[j * 70 + q];
  inputs.acc = plain.acc;
  for_each_isa([&](Isa isa) {
    at(isa_name(isa));
    Guarded<float> out(7 * 37);
    Params params = inputs.params(out.data(), 37, DType::kF32);
    params.a_scale.stride = params.w_scale.stride = 0;
    params.a_zero_point = {};
    params.bias = nullptr;
    params.gate = params.residual = {};
    CHECK(gemm_int8::run(params, Serial()).is_ok());
    for (int64_t i = 0; i < 7; ++i)
      for (int64_t j = 0; j < 37; ++j) CHECK_EQ(out[i * 37 + j], inputs.scaled(i, j));
  });
}

TEST(saturation_never_happens) {
  for (int a : {-128, 127})
    for (int w : {-128, 127})
      for (int64_t k : {1, 4, 64, 512, 65536, 65600}) {
        const Problem problem{7, 17, k};
        if (k > 60000 && (a != -128 || w != -128)) continue;
        Int8Inputs inputs({7, 17, 0}, 0, 9);
        Exact<int8_t> rows(7 * k), weights(17 * k), packed(*int8_tile::packed_bytes(17, k));
        std::memset(rows.data(), a, static_cast<size_t>(7 * k));
        std::memset(weights.data(), w, static_cast<size_t>(17 * k));
        CHECK(gemm_int8::pack(weights.data(), {0, 17, k}, k, packed.data(), inputs.sums.data(),
                              Serial())
                  .is_ok());
        for (int64_t i = 0; i < 7; ++i) inputs.zero_point[i] = a < 0 ? 127 : -128;
        for_each_isa([&](Isa isa) {
          at(isa_name(isa), " a = ", a, " w = ", w, " k = ", k);
          Guarded<float> out(7 * 17);
          Params params = inputs.params(out.data(), 17, DType::kF32);
          params.problem = problem;
          params.a = rows.data();
          params.a_stride = k;
          params.w = packed.data();
          params.bias = nullptr;
          params.gate = params.residual = {};
          CHECK(gemm_int8::run(params, Serial()).is_ok());
          const float sum =
              static_cast<float>((a - (a < 0 ? 127 : -128)) * static_cast<int64_t>(w) * k);
          for (int64_t i = 0; i < 7; ++i)
            for (int64_t j = 0; j < 17; ++j)
              CHECK_EQ(out[i * 17 + j], sum * inputs.a_scale[i] * inputs.w_scale[j]);
        });
      }
}

// The correction for zero points wraps in int32; the result is exact nevertheless.
static_assert(gemm::correct(int32_t{-2139095040}, 127 + 128, -128 * 65536) == 0);
static_assert(gemm::correct(int64_t{1} << 40, -128, 1 << 30) ==
              (int64_t{1} << 40) + (int64_t{1} << 37));

// a, w and out have offsets beyond 2^31; only a few of their pages are touched.
TEST(operands_beyond_2_to_31_bytes) {
  const int64_t k = 16384, n = (int64_t{1} << 18) + 3, a_stride = (int64_t{1} << 32) + 9;
  const int64_t out_stride = (int64_t{1} << 31) + 16;
  Sparse a(2 * a_stride + k), w(*int8_tile::packed_bytes(n, k)), out((2 * out_stride + n) * 4);
  if (!a.is_mapped() || !w.is_mapped() || !out.is_mapped()) return;
  const int64_t first = n / 16 * 16;  // the last tile of columns holds three
  std::vector<int32_t> sums(static_cast<size_t>(n), 0);
  std::vector<int8_t> columns(static_cast<size_t>(3 * k));
  Random random(10);
  for (int8_t& value : columns) value = random.int8();
  CHECK(gemm_int8::pack(columns.data(), {0, 3, k}, k,
                        w.as<int8_t>() + int8_tile::offset(first, 0, k / 64), sums.data() + first,
                        Serial())
            .is_ok());
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t p = 0; p < k; ++p) a.as<int8_t>()[i * a_stride + p] = random.int8();
  const float one = 1;
  Params params;
  params.problem = {3, n, k};
  params.a = a.as<int8_t>();
  params.a_stride = a_stride;
  params.w = w.as<int8_t>();
  params.w_sums = sums.data();
  params.a_scale = params.w_scale = {&one, 0};
  params.out = out.as<float>();
  params.out_stride = out_stride;
  for (const gemm::CpuKernel& kernel : gemm_int8::cpu_op().kernels) {
    if (kernel.isa > available_isas().back()) continue;
    at(kernel.name);
    const int64_t bytes = kernel.panel_bytes(params.problem);
    void* const scratch = std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
    kernel.compute(&params, {0, 3, first, n, kernel.tile_m, false}, scratch);
    std::free(scratch);
    for (int64_t i = 0; i < 3; ++i)
      for (int64_t j = 0; j < 3; ++j) {
        int64_t sum = 0;
        for (int64_t p = 0; p < k; ++p)
          sum += a.as<int8_t>()[i * a_stride + p] * columns[static_cast<size_t>(j * k + p)];
        float& got = out.as<float>()[i * out_stride + first + j];
        CHECK_EQ(got, static_cast<float>(sum));
        got = 0;
      }
  }
}

}  // namespace
}  // namespace lamina::test
