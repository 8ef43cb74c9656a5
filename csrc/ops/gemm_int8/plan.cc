#include "ops/gemm_int8/plan.h"

#include <algorithm>
#include <sstream>

#include "base/int_math.h"
#include "layout/int8_tile.h"

namespace lamina::gemm_int8 {

#define LAMINA_CPU_KERNEL(op, isa, value, min_m) CpuKernel op##_##isa(int64_t);
#include "ops/gemm_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL

namespace {

Work work_of(const Problem& p, const CpuKernel& kernel) {
  return {p.m,
          p.n,
          p.k,
          kernel.tile_m,
          kernel.tile_n,
          kernel.macs_per_cycle,
          1.0,
          kernel.scratch_bytes(kernel.tile_m, p),
          0};
}

const CpuKernel& choose_kernel(int64_t m, Isa isa) {
  const CpuKernel* chosen = &kernels().front();
  for (const CpuKernel& kernel : kernels())
    if (kernel.isa <= isa && m >= kernel.min_m) chosen = &kernel;
  return *chosen;
}

}  // namespace

const std::vector<CpuKernel>& kernels() {
  static const std::vector<CpuKernel> all = {
#define LAMINA_CPU_KERNEL(op, isa, value, min_m) op##_##isa(min_m),
#include "ops/gemm_int8/kernels.inc"
#undef LAMINA_CPU_KERNEL
  };
  return all;
}

Status check(const Problem& p) {
  if (p.m < 0 || p.n < 0 || p.k < 0)
    return Status::error("gemm_int8: m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         "; none may be negative");
  if (p.k > kMaxK)
    return Status::error("gemm_int8: k = ", p.k, " must be at most ", kMaxK,
                         ", the most for which int32 column sums are exact");
  if (!checked_product(p.m, std::max<int64_t>(p.n, 1), 4) ||
      !checked_product(p.m, std::max<int64_t>(p.k, 1)) || !int8_tile::packed_bytes(p.n, p.k))
    return Status::error("gemm_int8: m = ", p.m, ", n = ", p.n, ", k = ", p.k,
                         " needs more than 2^63 bytes");
  return Status::ok();
}

Plan plan(const Problem& p, const CpuInfo& cpu, int threads) {
  const CpuKernel& kernel = choose_kernel(p.m, cpu.isa);
  return {cut(work_of(p, kernel), cpu.l2_bytes, threads), kernel};
}

Plan known_plan(const Problem& p, const CpuInfo& cpu, int threads) {
  const auto key = memo_key(key_of(p), key_of(cpu), threads);
  static thread_local Memo<key.size(), Plan, 64> known(host_work().plans);
  if (const Plan* found = known.find(key)) return *found;
  return known.keep(key, plan(p, cpu, threads));
}

std::string Plan::describe(const Problem& p, const CpuInfo& cpu) const {
  const Cost cost = task_cost(work_of(p, kernel), block_m, block_n, cpu.l2_bytes);
  std::ostringstream text;
  text << "gemm_int8  m = " << p.m << ", n = " << p.n << ", k = " << p.k
       << (p.is_grouped ? ", scales along k\n" : "\n") << "kernel     " << kernel.name
       << " on a CPU with " << isa_name(cpu.isa) << "\n";
  for (const CpuKernel& other : kernels())
    if (other.isa > kernel.isa)
      text << "not        " << other.name << ": "
           << (other.isa > cpu.isa ? "instruction set not in use" : "worth it only for m >= ")
           << (other.isa > cpu.isa ? "" : std::to_string(other.min_m)) << "\n";
  text << describe_tasks(kernel.tile_m, kernel.tile_n) << "panel      " << block_m
       << " rows of a packed at a time ("
       << block_m / kernel.tile_m * int8_tile::tiles_k(p.k) * kernel.packed_bytes
       << " bytes of an L2 of " << cpu.l2_bytes << ")\n"
       << cost.describe();
  return text.str();
}

}  // namespace lamina::gemm_int8
