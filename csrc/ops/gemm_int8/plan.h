// Which kernel computes a gemm_int8 problem, and how it is cut into blocks and tasks. Pure,
// host-only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/cpu_features.h"
#include "base/memo.h"
#include "ops/gemm_int8/blocking.h"
#include "ops/gemm_int8/cpu/kernel.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

inline auto key_of(const Problem& problem) {
  const auto& [m, n, k, is_grouped] = problem;
  return memo_key(m, n, k, is_grouped);
}

struct Plan : Blocking {
  CpuKernel kernel;

  std::string describe(const Problem& problem, const CpuInfo& cpu) const;
};

// Every kernel in this build, ascending by ISA.
const std::vector<CpuKernel>& kernels();

Status check(const Problem& problem);
Plan plan(const Problem& problem, const CpuInfo& cpu, int threads);
Plan known_plan(const Problem& problem, const CpuInfo& cpu, int threads);  // made once a thread

}  // namespace lamina::gemm_int8
