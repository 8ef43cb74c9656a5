// Tests of the CPU planner that need sanitizers: sizes that could overflow. tests/probe has the others.
#include "check.h"
#include "gemm/cpu/plan.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::test {
namespace {

using gemm::Plan;
using gemm::Problem;

constexpr int64_t kL2 = 1 << 20;

TEST(huge_problems_are_planned_without_overflow) {
  const int64_t big = int64_t{1} << 40;
  for (const Problem& problem :
       {Problem{big, 1, 1}, Problem{1, big, 1000}, Problem{big, 1 << 20, 0},
        Problem{(int64_t{1} << 31) + 1, 1 << 29, 64}, Problem{100, 100, gemm_int8::kMaxK}}) {
    at(problem.m, " ", problem.n, " ", problem.k);
    CHECK(gemm_int8::check(problem).is_ok());
    for (Isa isa : {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512Vnni, Isa::kAmxInt8}) {
      const Plan chosen = plan(gemm_int8::cpu_op(), problem, {isa, kL2}, 64);
      CHECK(chosen.block_m > 0 && chosen.block_n > 0 && chosen.scratch_bytes > 0);
      CHECK(chosen.grid_m * chosen.block_m >= problem.m &&
            chosen.grid_n * chosen.block_n >= problem.n);
      CHECK(chosen.block(chosen.tasks() - 1, problem.m, problem.n).m_end == problem.m);
    }
  }
}

TEST(impossible_problems_are_refused) {
  const int64_t big = int64_t{1} << 40;
  for (const Problem& problem :
       {Problem{-1, 1, 1}, Problem{1, -1, 1}, Problem{1, 1, -1}, Problem{big, big, 1},
        Problem{INT64_MAX, 1, 1}, Problem{0, INT64_MAX, 64}, Problem{1, 1, gemm_int8::kMaxK + 1},
        Problem{INT64_MAX, INT64_MAX, INT64_MAX}, Problem{INT64_MIN, INT64_MIN, INT64_MIN}}) {
    at(problem.m, " ", problem.n, " ", problem.k);
    const Status status = gemm_int8::check(problem);
    CHECK(!status.is_ok());
    CHECK(status.message().find("gemm_int8: ") == 0);
    std::string text;
    CHECK(!gemm_int8::explain(problem, 2, text).is_ok());
  }
}

}  // namespace
}  // namespace lamina::test
