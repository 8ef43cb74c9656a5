// Tests of merge_attention_states on every ISA in memory whose guards show a stray byte.
#include <cmath>

#include "memory.h"
#include "ops/merge_attention_states/merge_attention_states.h"
#include "threads.h"

namespace lamina::test {
namespace {

using merge_attention_states::Params;
using merge_attention_states::Part;

template <class In>
void check_merge(int64_t tokens, int64_t heads, int64_t dim, DType dtype,
                 const Parallel& parallel) {
  Random random(static_cast<uint64_t>(tokens * 1000 + dim));
  const int64_t rows = tokens * heads;
  Exact<In> x(2 * rows * dim);
  Exact<float> lse(2 * rows);
  for (int64_t i = 0; i < x.count(); ++i) x[i] = from_f32<In>(static_cast<float>(random.int8()));
  for (int64_t i = 0; i < lse.count(); ++i) lse[i] = static_cast<float>(random.int8()) / 40;
  const Part parts[] = {{x.data(), heads * dim, dim, lse.data(), tokens, 1},
                        {x.data() + rows * dim, heads * dim, dim, lse.data() + rows, tokens, 1}};
  Guarded<float> out(rows * dim), merged(rows);
  Params params;
  params.tokens = tokens, params.heads = heads, params.head_dim = dim;
  params.parts = parts;
  params.part_count = 2;
  params.dtype = dtype;
  params.out = out.data();
  params.lse = merged.data();
  CHECK(merge_attention_states::run(params, parallel).is_ok());
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t h = 0; h < heads; ++h) {
      const double a = std::exp(static_cast<double>(lse[h * tokens + t]));
      const double b = std::exp(static_cast<double>(lse[rows + h * tokens + t]));
      CHECK(std::fabs(merged[h * tokens + t] - std::log(a + b)) < 1e-5);
      for (int64_t j = 0; j < dim; ++j) {
        const int64_t i = (t * heads + h) * dim + j;
        const double want = (a * to_f32(x[i]) + b * to_f32(x[rows * dim + i])) / (a + b);
        CHECK(std::fabs(out[i] - want) < 1e-4);
      }
    }
  CHECK(out.guards_are_intact() && merged.guards_are_intact());
}

TEST(merges_two_parts) {
  for_each_isa([](Isa isa) {
    for (int64_t dim : {1, 8, 33, 256, 300}) {
      at(isa_name(isa), " head_dim ", dim);
      check_merge<float>(3, 2, dim, DType::kF32, Serial());
      check_merge<F16>(5, 1, dim, DType::kF16, Backwards(2));
      check_merge<BF16>(300, 2, dim, DType::kBF16, Threads(3));
    }
  });
}

}  // namespace
}  // namespace lamina::test
