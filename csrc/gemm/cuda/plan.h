// The CUDA planner: chooses the kernel of a product and the split of k. Pure, host-only.
#pragma once

#include <climits>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "device/device_info.h"
#include "gemm/cuda/kernel.h"
#include "gemm/problem.h"

namespace lamina::gemm {

// The kernels of one op that add in the same order, in this build. The object must outlive every call, because its
// address is part of the key of a plan.
struct CudaOp {
  const char* name;
  double a_bytes, w_bytes;  // bytes of one element
  // Tensor cores of different generations add floats in different orders. An op that adds floats on tensor cores must
  // therefore use kernels of one arch on a device, for every m.
  bool needs_one_arch;
  int max_splits;  // most splits of k to consider
  std::vector<CudaKernel> kernels;
};

// The allowed splits of k, and their partial sums.
struct KRule {
  // A split has whole k chunks of chunk_k input features; 0: whole ring steps.
  int64_t chunk_k = 0;
  bool one_each = false;      // one partial sum for each k chunk; else one for each split
  int64_t max_k = INT64_MAX;  // most input features of a split
};

// The limits that a call sets to the choice of a kernel.
struct Limits {
  int a_alignment = 16;   // alignment of the rows of a (block/row_alignment.h)
  int max_sms = INT_MAX;  // cap on SMs, at least 1
  std::string_view only;  // the forced kernel, for tests; empty: any kernel
};

struct CudaPlan {
  CudaKernel kernel = {};  // its `launch` is nullptr if no allowed kernel can compute the problem
  Split split;
  int64_t partials = 0;    // number of partial sums; 0 when k is not split
  int sms = 0;             // SMs that the call may use
  bool is_capped = false;  // the caller keeps some SMs for other work
  double cycles = 1e300;   // the model's estimate

  // Most blocks of any launch, and of the product's launch. Under a cap a launch has at most one block for each
  // SM that it may use.
  int max_blocks() const { return is_capped ? sms : INT_MAX; }
  int kernel_blocks() const { return kernel.is_persistent ? sms : max_blocks(); }

  // The bytes of the partial sums, a multiple of 16.
  int64_t partial_bytes(const Problem& problem) const;
  // The plan as text. workspace_bytes: the whole workspace of the call.
  std::string describe(const CudaOp& op, const Problem& problem, const DeviceInfo& device,
                       int64_t workspace_bytes) const;
};

// An error if no CUDA kernel of `op` can compute the problem on this device, although a CPU can.
Status check_cuda(const char* op, const Problem& problem, const DeviceInfo& device);

CudaPlan plan_cuda(const CudaOp& op, const Problem& problem, const KRule& rule,
                   const DeviceInfo& device, const Limits& limits);
CudaPlan known_plan_cuda(const CudaOp& op, const Problem& problem, const KRule& rule,
                         const DeviceInfo& device, const Limits& limits);  // kept by each thread

// Launches the product and, where k is split, calls reduce(params, split, max_blocks, stream). partials: a 16-byte
// aligned workspace of plan.partial_bytes().
template <class Params, class Reduce>
Status launch_product(const CudaPlan& plan, const Params& params, void* partials,
                      const Reduce& reduce, void* stream) {
  Split split = plan.split;
  split.partials = partials;
  split.overlaps = may_overlap(plan.kernel.arch, plan.is_capped);
  if (Status status = plan.kernel.launch(&params, split, plan.kernel_blocks(), stream);
      !status.is_ok())
    return status;
  return split.count == 1 ? Status::ok() : reduce(params, split, plan.max_blocks(), stream);
}

}  // namespace lamina::gemm
