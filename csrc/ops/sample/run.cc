// check -> plan -> sample or verify. The plan takes the last kernel that the ISA can run and cuts the rows evenly.
#include <algorithm>
#include <vector>

#include "base/built_isas.h"
#include "base/cpu_kernel.h"
#include "base/int_math.h"
#include "base/row_plan.h"
#include "ops/sample/cpu/kernel.h"
#include "ops/sample/sample.h"

namespace lamina::sample {

#define LAMINA_CUDA_KERNEL(...)
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, extern const CpuKernel op##_##isa;)
#include "ops/sample/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

// Elements of a task. At about 1 element a cycle a task takes longer than the wake-up of its thread, 5 us.
constexpr RowPlan kPlan{"sample_tokens", "vocab", 16 * 1024};

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> rows = {
#define LAMINA_CPU_KERNEL(op, isa, value) LAMINA_IF_BUILT(isa, op##_##isa, )
#include "ops/sample/kernels.inc"
#undef LAMINA_CPU_KERNEL
#undef LAMINA_CUDA_KERNEL
  };
  return rows;
}

}  // namespace

Status check(const char* op, const Target& target) {
  if (target.vocab > kMaxVocab)
    return Status::error(op, ": vocab = ", target.vocab, "; at most ", kMaxVocab,
                         ", up to which 64 bits hold every sum of weights");
  return Status::ok();
}

Status run(const Sample& checked, const Parallel& parallel) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  parallel.for_range(checked.target.rows, kPlan.grain_rows(checked.target.vocab),
                     [&](int64_t begin, int64_t end) { kernel.sample_rows(checked, begin, end); });
  return Status::ok();
}

Status run(const Verify& checked, const Parallel& parallel) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  const CpuKernel& kernel = choose_kernel(kernels(), cpu.isa);
  const int64_t rows = ceil_div(checked.target.rows, std::max<int64_t>(1, checked.requests));
  const int64_t grain =
      ceil_div(kPlan.grain_rows(checked.target.vocab), std::max<int64_t>(1, rows));
  parallel.for_range(checked.requests, grain, [&](int64_t begin, int64_t end) {
    kernel.verify_requests(checked, begin, end);
  });
  return Status::ok();
}

Status explain(int64_t m, int64_t vocab, int threads, std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  return kPlan.explain(m, vocab, choose_kernel(kernels(), cpu.isa).name, cpu.isa, threads, text);
}

}  // namespace lamina::sample
