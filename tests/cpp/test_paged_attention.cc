// paged_attention on every ISA with random arguments: an error, or the results of a plain loop in double. LAMINA_FUZZ sets the number of calls.
#include "attention_problem.h"
#include "threads.h"

namespace lamina::test {
namespace {

// Some kernels round queries and weights; tests/reference/paged_attention.py has their bounds.
AttentionProblem::Rounding rounding_of(const Params& params, Isa isa) {
  const bool is_int8 = params.k.dtype == kv::CacheDType::kI8 && isa >= Isa::kAvx512Vnni;
  const bool is_bf16 = params.k.dtype == kv::CacheDType::kBF16 && params.q_dtype == DType::kBF16 &&
                       isa >= Isa::kAvx512Bf16;
  return {is_int8 || is_bf16 ? 0x1p-7 : 0.0, is_int8 ? 1e-2 : 1e-4};
}

TEST(paged_attention_of_random_arguments) {
  const char* const setting = std::getenv("LAMINA_FUZZ");
  const int64_t calls = setting == nullptr ? 5000 : std::atoll(setting);
  const std::vector<Isa>& isas = available_isas();
  int64_t right = 0;
  for (int64_t i = 0; i < calls; ++i) {
    const Isa isa = isas[static_cast<size_t>(i) % isas.size()];
    (void)set_isa(isa_name(isa));
    at("problem ", i, ", ", isa_name(isa));
    AttentionProblem problem(static_cast<uint64_t>(i));
    const AttentionProblem::Verdict verdict = problem.verdict();
    const Status status = i % 16 == 0  ? paged_attention::run(problem.params(), Threads(3))
                          : i % 4 == 0 ? paged_attention::run(problem.params(), Backwards(2))
                                       : paged_attention::run(problem.params(), Serial());
    CHECK(status.is_ok() ? verdict != AttentionProblem::Verdict::kWrong
                         : verdict != AttentionProblem::Verdict::kRight);
    if (status.is_ok() && verdict != AttentionProblem::Verdict::kWrong)
      problem.check_results(rounding_of(problem.params(), isa)), ++right;
    if (!status.is_ok()) CHECK(problem.outputs_are_untouched());
  }
  (void)set_isa("auto");
  CHECK(right > calls / 2);
  CHECK(right < calls);
}

}  // namespace
}  // namespace lamina::test
