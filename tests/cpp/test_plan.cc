// Tests of the CPU planner: the right kernel, every output in exactly one task, sizes that cannot overflow.
#include "base/memo.h"
#include "check.h"
#include "gemm/cpu/plan.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::test {
namespace {

using gemm::Block;
using gemm::CpuOp;
using gemm::Plan;
using gemm::Problem;

constexpr int64_t kL2 = 1 << 20;

#if defined(__x86_64__)
TEST(the_kernel_fits_the_isa_and_m) {
  struct Row {
    Isa isa;
    int64_t m;
    const char* kernel;
  };
  const Row table[] = {
      {Isa::kGeneric, 1, "gemm_int8_generic"},
      {Isa::kGeneric, 500, "gemm_int8_generic"},
      {Isa::kAvx2, 1, "gemm_int8_avx2"},
      {Isa::kAvx2, 500, "gemm_int8_avx2"},
      {Isa::kAvx512Vnni, 1, "gemm_int8_avx512_vnni"},
      {Isa::kAvx512Vnni, 500, "gemm_int8_avx512_vnni"},
      {Isa::kAmxInt8, 8, "gemm_int8_avx512_vnni"},
      {Isa::kAmxInt8, 9, "gemm_int8_amx_int8"},
      {Isa::kAmxInt8, 500, "gemm_int8_amx_int8"},
  };
  for (const Row& row : table) {
    const Plan chosen = plan(gemm_int8::cpu_op(), Problem{row.m, 4096, 4096}, {row.isa, kL2}, 2);
    CHECK_EQ(std::string(chosen.kernel.name) == row.kernel, true);
  }
}
#endif

TEST(kernels_ascend_and_are_named_after_their_isa) {
  Isa last = Isa::kGeneric;
  for (const gemm::CpuKernel& kernel : gemm_int8::cpu_op().kernels) {
    CHECK(kernel.isa >= last);
    last = kernel.isa;
    CHECK(std::string(kernel.name) == "gemm_int8_" + std::string(isa_name(kernel.isa)));
    CHECK(kernel.tile_m > 0 && kernel.tile_n > 0 && kernel.tile_n % 16 == 0);
  }
  const gemm::CpuKernel& first = gemm_int8::cpu_op().kernels.front();
  CHECK(first.isa == Isa::kGeneric && first.min_m == 0);
}

TEST(every_output_is_in_exactly_one_task) {
  for (const gemm::CpuKernel& kernel : gemm_int8::cpu_op().kernels)
    for (int64_t m : {1, 2, 5, 6, 7, 31, 33, 64, 130})
      for (int64_t n : {1, 15, 16, 17, 64, 65, 300})
        for (int64_t k : {0, 1, 64, 4096, 70000})
          for (int threads : {1, 2, 3, 8, 64}) {
            at(kernel.name, " ", m, " ", n, " ", k, " threads ", threads);
            const Problem problem{m, n, k};
            const Plan chosen = plan(gemm_int8::cpu_op(), problem, {kernel.isa, kL2}, threads);
            CHECK(chosen.workers >= 1 && chosen.workers <= threads);
            CHECK(chosen.workers <= chosen.tasks());
            CHECK(chosen.block_m > 0 && chosen.block_m % chosen.kernel.tile_m == 0);
            CHECK(chosen.block_n % chosen.kernel.tile_n == 0);
            CHECK_EQ(chosen.scratch_bytes,
                     chosen.block_m / chosen.kernel.tile_m * chosen.kernel.panel_bytes(problem));
            CHECK(chosen.scratch_bytes >= chosen.block_m * k);
            std::vector<int> owners(static_cast<size_t>(m * n), 0);
            for (int64_t task = 0; task < chosen.tasks(); ++task) {
              const Block block = chosen.block(task, problem.m, problem.n);
              CHECK(block.n_begin % 16 == 0);
              CHECK(block.m_begin < block.m_end && block.n_begin < block.n_end);
              for (int64_t i = block.m_begin; i < block.m_end; ++i)
                for (int64_t j = block.n_begin; j < block.n_end; ++j)
                  ++owners[static_cast<size_t>(i * n + j)];
            }
            for (int count : owners) CHECK_EQ(count, 1);
          }
}

TEST(panels_fit_l2_unless_one_tile_does_not) {
  for (int64_t k : {64, 4096, 16384, 1 << 20})
    for (const gemm::CpuKernel& kernel : gemm_int8::cpu_op().kernels) {
      const Plan chosen = plan(gemm_int8::cpu_op(), Problem{512, 512, k}, {kernel.isa, kL2}, 2);
      CHECK(chosen.block_m == chosen.kernel.tile_m || chosen.block_m * k <= kL2);
    }
}

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

// A thread finds the plans that it has made, and they equal new plans. Every field of the problem, the CPU and the
// number of threads make different plans.
template <class Problem>
void check_known_plans(const Problem& base, const Problem& other, const auto& plan,
                       const auto& known) {
  struct Call {
    Problem problem;
    CpuInfo cpu;
    int threads;
  };
  const CpuInfo cpu{Isa::kGeneric, kL2};
  std::vector<Call> calls = {{base, cpu, 2},
                             {other, cpu, 2},
                             {base, cpu, 64},
                             {base, {Isa::kAvx2, kL2}, 2},
                             {base, {Isa::kGeneric, 4096}, 2}};
  for (int64_t Problem::* size : {&Problem::m, &Problem::n, &Problem::k}) {
    calls.push_back(calls.front());
    calls.back().problem.*size = 4096;
  }
  for (int64_t expected : {1, 0})
    for (size_t i = 0; i < calls.size(); ++i) {
      at("call ", i);
      const Call& call = calls[i];
      const int64_t before = host_work().plans;
      const auto got = known(call.problem, call.cpu, call.threads);
      CHECK_EQ(host_work().plans - before, expected);
      const auto want = plan(call.problem, call.cpu, call.threads);
      CHECK(got.kernel.name == want.kernel.name && got.workers == want.workers);
      CHECK(got.grid_m == want.grid_m && got.grid_n == want.grid_n);
      CHECK(got.block_m == want.block_m && got.block_n == want.block_n);
      CHECK_EQ(got.scratch_bytes, want.scratch_bytes);
    }
}

TEST(known_plans_are_those_that_would_be_made) {
  const auto check_op = [](const CpuOp& op, const Problem& base, const Problem& other) {
    check_known_plans(
        base, other, [&](const auto&... of) { return gemm::plan(op, of...); },
        [&](const auto&... of) { return gemm::known_plan(op, of...); });
  };
  const Problem base{3, 500, 700, 32};
  check_op(gemm_int8::cpu_op(), Problem{3, 500, 700}, Problem{3, 500, 700, 128});
  gemm::CpuKernel kernel{};
  kernel.name = "first";
  kernel.tile_m = 4, kernel.tile_n = 16;
  kernel.macs_per_cycle = 8;
  kernel.panel_bytes = [](const Problem& p) { return p.k; };
  const CpuOp op{"op", 0.5, {kernel}};
  check_op(op, base, Problem{3, 500, 700, 64});
  // The same problem with the kernels of another op.
  kernel.name = "second";
  const CpuOp other{"other", 0.5, {kernel}};
  CHECK(std::string(gemm::known_plan(other, base, {Isa::kGeneric, kL2}, 2).kernel.name) ==
        "second");
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
