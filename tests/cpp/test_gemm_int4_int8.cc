// Tests of gemm_int4_int8 on every ISA against a plain loop.
#include "int4.h"
#include "ops/gemm_int4_int8/gemm_int4_int8.h"

namespace lamina::test {
namespace {

TEST(int4_times_int8_equals_the_loop_on_every_isa) {
  for_problems([](Weight& weight, Random& random) {
    const Problem& p = weight.problem;
    const int64_t stride = p.k + 3;
    Exact<int8_t> a = activations<int8_t>(p, stride, random), a_zero(p.m);
    Exact<float> a_scale(p.m);
    for (int64_t i = 0; i < p.m; ++i) a_scale[i] = random.scale(), a_zero[i] = random.int8();
    for (bool has_a_zero : {false, true}) {
      const auto want = [&](int64_t i, int64_t j) {
        const int64_t each = gemm_int4_int8::chunk_k(p.group) / p.group;
        float total = p.k == 0 ? 0.0f : -0.0f, k_chunk = -0.0f;
        for (int64_t g = 0; g < p.groups(); ++g) {
          int32_t sum = 0;  // below 2^24, so the step of the zero points is exact
          for (int64_t q = g * p.group; q < std::min((g + 1) * p.group, p.k); ++q)
            sum += (a[i * stride + q] - (has_a_zero ? a_zero[i] : 0)) *
                   (weight.q[j * p.k + q] - weight.zero_point[g * p.n + j]);
          k_chunk = std::fma(static_cast<float>(sum), weight.scale[g * p.n + j], k_chunk);
          if ((g + 1) % each != 0 && g + 1 < p.groups()) continue;
          total += k_chunk;
          k_chunk = -0.0f;
        }
        return weight.then.after(total * a_scale[i], i, j);
      };
      gemm_int4_int8::Params params;
      weight.fill(params);
      params.a = a.data();
      params.a_stride = stride;
      params.a_scale = {a_scale.data(), 1};
      if (has_a_zero) params.a_zero_point = {a_zero.data(), 1};
      for_each_isa([&](Isa isa) {
        at(isa_name(isa), " ", p.m, " x ", p.n, " x ", p.k, " / ", p.group, ", zero points ",
           weight.has_zero, " ", has_a_zero);
        const auto run = [&](const Parallel& parallel) {
          check_run(
              p,
              [&](float* out, int64_t out_stride) {
                params.out = out;
                params.out_stride = out_stride;
                return gemm_int4_int8::run(params, nullptr, parallel);
              },
              want);
        };
        run(Serial());
        run(Threads(4));
      });
    }
  });
}

}  // namespace
}  // namespace lamina::test
