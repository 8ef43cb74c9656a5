// Tests of gemm_int4 on every ISA against a plain loop.
#include "int4.h"
#include "ops/gemm_int4/gemm_int4.h"

namespace lamina::test {
namespace {

TEST(int4_times_floats_equals_the_loop_on_every_isa) {
  for_problems([](Weight& weight, Random& random) {
    const Problem& p = weight.problem;
    const int64_t stride = p.k + 3;
    Exact<float> a = activations<float>(p, stride, random);
    for (int64_t i = 0; i < a.count(); ++i) a[i] *= 0.37f;
    const auto want = [&](int64_t i, int64_t j) {
      float total = p.k == 0 ? 0.0f : -0.0f, k_chunk = -0.0f;
      for (int64_t q = 0; q < p.k; ++q) {
        const int64_t g = q / p.group * p.n + j;
        const float scale = weight.scale[g];
        const float minus_zero = -static_cast<float>(weight.zero_point[g]) * scale;
        const float w = std::fma(static_cast<float>(weight.q[j * p.k + q]), scale, minus_zero);
        k_chunk = std::fma(a[i * stride + q], w, k_chunk);
        if ((q + 1) % gemm_int4::kChunkK != 0 && q + 1 < p.k) continue;
        total += k_chunk;
        k_chunk = -0.0f;
      }
      return weight.then.after(total, i, j);
    };
    gemm_int4::Params params;
    weight.fill(params);
    params.a = a.data();
    params.a_stride = stride;
    for_each_isa([&](Isa isa) {
      at(isa_name(isa), " ", p.m, " x ", p.n, " x ", p.k, " / ", p.group, ", zero points ",
         weight.has_zero);
      for (int threads : {1, 3})
        check_run(
            p,
            [&](float* out, int64_t out_stride) {
              params.out = out;
              params.out_stride = out_stride;
              return gemm_int4::run(params, Threads(threads));
            },
            want);
    });
  });
}

// The sums of pieces are integers and exact, so their order does not show.
TEST(int4_times_bf16_equals_the_loop_on_isas_that_multiply_bf16) {
  for_problems([](Weight& weight, Random& random) {
    const Problem& p = weight.problem;
    const int64_t stride = p.k + 3;
    Exact<float> numbers = activations<float>(p, stride, random);
    Exact<BF16> a(numbers.count());
    for (int64_t i = 0; i < a.count(); ++i) a[i] = from_f32<BF16>(numbers[i]);
    const auto want = [&](int64_t i, int64_t j) {
      float total = p.k == 0 ? 0.0f : -0.0f, k_chunk = -0.0f, piece = -0.0f;
      for (int64_t q = 0; q < p.k; ++q) {
        const int64_t g = q / p.group * p.n + j;
        piece += numbers[i * stride + q] *
                 static_cast<float>(weight.q[j * p.k + q] - weight.zero_point[g]);
        const bool ends = (q + 1) % gemm_int4::kChunkK == 0 || q + 1 == p.k;
        if ((q + 1) % p.group != 0 && !ends) continue;
        k_chunk = std::fma(piece, weight.scale[g], k_chunk);
        piece = -0.0f;
        if (!ends) continue;
        total += k_chunk;
        k_chunk = -0.0f;
      }
      return weight.then.after(total, i, j);
    };
    gemm_int4::Params params;
    weight.fill(params);
    params.a = a.data();
    params.a_dtype = DType::kBF16;
    params.a_stride = stride;
    for_each_isa([&](Isa isa) {
      if (isa < Isa::kAvx512Bf16) return;
      at(isa_name(isa), " ", p.m, " x ", p.n, " x ", p.k, " / ", p.group, ", zero points ",
         weight.has_zero);
      for (int threads : {1, 3})
        check_run(
            p,
            [&](float* out, int64_t out_stride) {
              params.out = out;
              params.out_stride = out_stride;
              return gemm_int4::run(params, Threads(threads));
            },
            want);
    });
  });
}

}  // namespace
}  // namespace lamina::test
