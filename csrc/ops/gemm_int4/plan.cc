#include "ops/gemm_int4/plan.h"

#include <sstream>

namespace lamina::gemm_int4 {
namespace {

gemm_int8::Work work_of(const Problem& p, const CpuKernel& kernel) {
  // Half a byte, and an f32 scale a group.
  const double weight_bytes = 0.5 + 4.0 / static_cast<double>(p.group);
  return {p.m,
          p.n,
          p.k,
          kernel.tile_m,
          kernel.tile_n,
          kernel.macs_per_cycle,
          weight_bytes,
          kernel.panel_bytes(p),
          kernel.scratch_bytes};
}

// Why a kernel cannot or should not compute p, or nothing.
std::string objection(const CpuKernel& kernel, const Problem& p, Isa isa) {
  if (kernel.isa > isa) return "instruction set not in use";
  if (p.group % kernel.group_step != 0 && p.groups() > 1)
    return "only for groups that are multiples of " + std::to_string(kernel.group_step);
  if (p.m < kernel.min_m) return "worth it only for m >= " + std::to_string(kernel.min_m);
  return {};
}

}  // namespace

Plan plan(const CpuKernels& kernels, const Problem& p, const CpuInfo& cpu, int threads) {
  const CpuKernel* chosen = &kernels.front();
  for (const CpuKernel& kernel : kernels)
    if (objection(kernel, p, cpu.isa).empty()) chosen = &kernel;
  return {gemm_int8::cut(work_of(p, *chosen), cpu.l2_bytes, threads), *chosen};
}

Plan known_plan(const CpuKernels& kernels, const Problem& p, const CpuInfo& cpu, int threads) {
  const auto key = memo_key(&kernels, key_of(p), key_of(cpu), threads);
  static thread_local Memo<key.size(), Plan, 64> known(host_work().plans);
  if (const Plan* found = known.find(key)) return *found;
  return known.keep(key, plan(kernels, p, cpu, threads));
}

Status explain(const char* op, const CpuKernels& kernels, const Problem& p, int threads,
               std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  if (p.m == 0 || p.n == 0) {
    text = std::string(op) + "  an empty result: nothing to compute";
    return Status::ok();
  }
  const Plan chosen = plan(kernels, p, cpu, threads);
  const CpuKernel& kernel = chosen.kernel;
  std::ostringstream out;
  out << op << "  m = " << p.m << ", n = " << p.n << ", k = " << p.k << ", group = " << p.group
      << "\nkernel     " << kernel.name << " on a CPU with " << isa_name(cpu.isa) << "\n";
  for (const CpuKernel& other : kernels)
    if (other.isa > kernel.isa)
      out << "not        " << other.name << ": " << objection(other, p, cpu.isa) << "\n";
  out << chosen.describe_tasks(kernel.tile_m, kernel.tile_n) << "panel      " << chosen.block_m
      << " rows of a packed at a time (" << chosen.scratch_bytes << " bytes of scratch, an L2 of "
      << cpu.l2_bytes << ")\n"
      << gemm_int8::task_cost(work_of(p, kernel), chosen.block_m, chosen.block_n, cpu.l2_bytes)
             .describe();
  text = out.str();
  return Status::ok();
}

}  // namespace lamina::gemm_int4
