// Which CUDA kernel computes a gemm_int8 problem, and how k is split. Pure, host-only.
#pragma once

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
  int sms = 0;
  int64_t cycles = 0;  // what the model expects

  // For the partial sums of split k; 0 when k is not split.
  int64_t workspace_bytes(const Problem& problem) const;
  std::string describe(const Problem& problem, const DeviceInfo& device) const;
};

// Every CUDA kernel in this build.
const std::vector<CudaKernel>& cuda_kernels();

Status check_cuda(const Problem& problem, const DeviceInfo& device);
// a_alignment: row_alignment(). `only` names the one kernel to choose from, for tests; empty: any. Where that
// one cannot compute the problem, the plan has no kernel.
CudaPlan plan_cuda(const Problem& problem, const DeviceInfo& device, int a_alignment,
                   std::string_view only = {});

// Launches the plan; workspace: plan.workspace_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

}  // namespace lamina::gemm_int8
