// Which CUDA kernel computes a gemm_int4 problem, and how k is split. Pure, host-only.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "device/device_info.h"
#include "ops/gemm_int4/cuda/kernel.h"
#include "ops/gemm_int4/cuda/segments.h"

namespace lamina::gemm_int4 {

struct CudaPlan : SegmentPlan<CudaKernel> {
  // For the sums of segments; 0 when k is not split.
  int64_t workspace_bytes(const Problem& problem) const;
  std::string describe(const Problem& problem, const DeviceInfo& device) const;
};

// Every CUDA kernel in this build.
const std::vector<CudaKernel>& cuda_kernels();

// What CUDA kernels do not compute, although CPUs do.
Status check_cuda(const Problem& problem, const DeviceInfo& device);
Status check_cuda(const Params& params);

// only: the one kernel, for tests; empty: any. Without a kernel where it names one that cannot compute the problem.
CudaPlan plan_cuda(const Problem& problem, const DeviceInfo& device, int max_sms,
                   std::string_view only);
CudaPlan known_plan_cuda(const Problem& problem, const DeviceInfo& device, int max_sms,
                         std::string_view only);  // made once a thread

// Launches the plan; workspace: plan.workspace_bytes(), 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

}  // namespace lamina::gemm_int4
