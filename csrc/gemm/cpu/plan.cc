#include "gemm/cpu/plan.h"

#include <sstream>

#include "base/memo.h"

namespace lamina::gemm {
namespace {

Work work_of(const CpuOp& op, const Problem& p, const CpuKernel& kernel) {
  // Each group has an f32 scale.
  const double scale_bytes = p.is_grouped() ? 4.0 / static_cast<double>(p.group) : 0.0;
  return {p.m,
          p.n,
          p.k,
          kernel.tile_m,
          kernel.tile_n,
          kernel.macs_per_cycle,
          kernel.expand_rows,
          op.code_bytes + scale_bytes,
          kernel.panel_bytes(p),
          kernel.scratch_bytes};
}

// The reason why a kernel cannot or should not compute p; empty if there is no such reason.
std::string objection(const CpuKernel& kernel, const Problem& p, Isa isa) {
  if (kernel.isa > isa) return "instruction set not in use";
  if (kernel.needs_bf16 && !p.is_bf16) return "only for bf16 activations with integer zero points";
  if (p.group % kernel.group_step != 0 && p.groups() > 1)
    return "only for groups that are multiples of " + std::to_string(kernel.group_step);
  if (p.m < kernel.min_m) return "worth it only for m >= " + std::to_string(kernel.min_m);
  return {};
}

}  // namespace

Plan plan(const CpuOp& op, const Problem& p, const CpuInfo& cpu, int threads) {
  const CpuKernel* chosen = &op.kernels.front();
  for (const CpuKernel& kernel : op.kernels)
    if (objection(kernel, p, cpu.isa).empty()) chosen = &kernel;
  return {cut(work_of(op, p, *chosen), cpu.l2_bytes, threads), *chosen};
}

Plan known_plan(const CpuOp& op, const Problem& p, const CpuInfo& cpu, int threads) {
  const auto key = memo_key(&op, key_of(p), key_of(cpu), threads);
  static thread_local Memo<key.size(), Plan, 64> known(host_work().plans);
  if (const Plan* found = known.find(key)) return *found;
  return known.keep(key, plan(op, p, cpu, threads));
}

Status explain(const CpuOp& op, const Problem& p, int threads, std::string& text) {
  CpuInfo cpu;
  if (Status status = cpu_info(cpu); !status.is_ok()) return status;
  if (p.m == 0 || p.n == 0) {
    text = std::string(op.name) + "  an empty result: nothing to compute";
    return Status::ok();
  }
  const Plan chosen = plan(op, p, cpu, threads);
  const CpuKernel& kernel = chosen.kernel;
  std::ostringstream out;
  out << op.name << "  m = " << p.m << ", n = " << p.n << ", k = " << p.k;
  if (p.is_grouped()) out << ", group = " << p.group;
  if (p.is_bf16) out << ", bf16 activations with integer zero points";
  out << "\nkernel     " << kernel.name << " on a CPU with " << isa_name(cpu.isa) << "\n";
  for (const CpuKernel& other : op.kernels)
    if (other.isa > kernel.isa)
      out << "not        " << other.name << ": " << objection(other, p, cpu.isa) << "\n";
  out << chosen.describe_tasks(kernel.tile_m, kernel.tile_n) << "panel      " << chosen.block_m
      << " rows of a packed at a time (" << chosen.scratch_bytes << " bytes of scratch, an L2 of "
      << cpu.l2_bytes << ")\n"
      << task_cost(work_of(op, p, kernel), chosen.block_m, chosen.block_n, cpu.l2_bytes).describe();
  text = out.str();
  return Status::ok();
}

}  // namespace lamina::gemm
