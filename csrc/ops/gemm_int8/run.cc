// check -> plan -> compute
#include "ops/gemm_int8/gemm_int8.h"
#include "ops/gemm_int8/plan.h"

namespace lamina::gemm_int8 {

Status run(const Params& params, const Parallel& parallel) {
  const Problem& problem = params.problem;
  CpuInfo cpu;
  if (Status status = check(problem); !status.is_ok()) return status;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  if (problem.m == 0 || problem.n == 0) return Status::ok();
  const Plan chosen = known_plan(problem, cpu, parallel.threads());
  run_blocks(chosen, problem.m, problem.n, parallel, [&](const Block& block, void* scratch) {
    chosen.kernel.compute(params, block, scratch);
  });
  return Status::ok();
}

Status explain(const Problem& problem, int threads, std::string& text) {
  CpuInfo cpu;
  if (Status status = check(problem); !status.is_ok()) return status;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  text = problem.m == 0 || problem.n == 0 ? "gemm_int8  an empty result: nothing to compute"
                                          : plan(problem, cpu, threads).describe(problem, cpu);
  return Status::ok();
}

}  // namespace lamina::gemm_int8
