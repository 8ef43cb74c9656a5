// Which CUDA kernel computes a gemm_int8 problem, and how k is split. Pure, host-only.
#pragma once

#include <climits>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "device/device_info.h"
#include "ops/gemm_int8/cuda/kernel.h"
#include "ops/gemm_int8/gemm_int8.h"

namespace lamina::gemm_int8 {

struct CudaPlan {
  CudaKernel kernel = {};
  Split split;
  int64_t blocks_m = 0, blocks_n = 0;
  int sms = 0;             // that it may use
  bool is_capped = false;  // because the caller keeps others for something else
  int64_t cycles = 0;      // what the model expects

  // Blocks that stay go to SMs that are idle, one each: as many as SMs.
  int max_blocks() const { return is_capped ? sms : INT_MAX; }

  // For the partial sums of split k; 0 when k is not split.
  int64_t workspace_bytes(const Problem& problem) const;
  std::string describe(const Problem& problem, const DeviceInfo& device) const;
};

// Every CUDA kernel in this build.
const std::vector<CudaKernel>& cuda_kernels();

Status check_cuda(const Problem& problem, const DeviceInfo& device);

// What a call leaves the planner to choose from.
struct Limits {
  int a_alignment = 16;   // row_alignment()
  int max_sms = INT_MAX;  // at least 1
  std::string_view only;  // the one kernel, for tests; empty: any
};

// Without a kernel where `only` names one that cannot compute the problem.
CudaPlan plan_cuda(const Problem& problem, const DeviceInfo& device, const Limits& limits);
CudaPlan known_plan_cuda(const Problem& problem, const DeviceInfo& device,
                         const Limits& limits);  // made once a thread

// Launches the plan; workspace: plan.workspace_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

}  // namespace lamina::gemm_int8
