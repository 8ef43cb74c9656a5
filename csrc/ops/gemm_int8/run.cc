// check -> plan -> compute
#include "base/int_math.h"
#include "base/scratch.h"
#include "base/task_ranges.h"
#include "ops/gemm_int8/gemm_int8.h"
#include "ops/gemm_int8/plan.h"

namespace lamina::gemm_int8 {

Status run(const Params& params, const Parallel& parallel) {
  const Problem& problem = params.problem;
  CpuInfo cpu;
  if (Status status = check(problem); !status.is_ok()) return status;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  if (problem.m == 0 || problem.n == 0) return Status::ok();
  const Plan chosen = plan(problem, cpu, parallel.threads());
  TaskRanges tasks(chosen.tasks(), chosen.workers);
  parallel.for_range(chosen.workers, 1, [&](int64_t begin, int64_t end) {
    void* const scratch = thread_scratch(chosen.scratch_bytes);
    int64_t packed_row = -1;  // the rows that scratch holds packed
    for (int64_t worker = begin; worker < end; ++worker)
      tasks.run(worker, [&](int64_t task) {
        Block block = chosen.block(task, problem);
        block.is_packed = block.m_begin == packed_row;
        chosen.kernel.compute(params, block, scratch);
        packed_row = block.m_begin;
      });
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
