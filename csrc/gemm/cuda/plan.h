// Which CUDA kernel computes a product, and how k is split. Pure, host-only.
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

// The kernels of one op that add alike, in this build. The object outlives every call: its address is part of the key of
// a plan.
struct CudaOp {
  const char* name;
  double a_bytes, w_bytes;  // of an element
  // Floating sums on tensor cores: the kernels of one device must all be of one arch, whatever m is, because tensor cores
  // of another kind add in another order.
  bool needs_one_arch;
  int max_splits;  // splits of k that are considered
  std::vector<CudaKernel> kernels;
};

// How k may be split, and what is summed up where.
struct KRule {
  int64_t chunk_k = 0;        // every split is whole k chunks; 0: whole steps of the ring
  bool one_each = false;      // each k chunk has a partial sum of its own; else each split has
  int64_t max_k = INT64_MAX;  // most input features of a split
};

// What a call leaves the planner to choose from.
struct Limits {
  int a_alignment = 16;   // of the rows of a, block/row_alignment.h
  int max_sms = INT_MAX;  // at least 1
  std::string_view only;  // the one kernel, for tests; empty: any
};

struct CudaPlan {
  CudaKernel kernel = {};  // without a launch where `only` names none that can compute the problem
  Split split;
  int64_t partials = 0;    // partial sums; 0 when k is not split
  int sms = 0;             // that it may use
  bool is_capped = false;  // because the caller keeps others for something else
  double cycles = 1e300;   // what the model expects

  // Most blocks of any launch, and of the kernel's. Blocks that stay go to SMs that are idle, one each.
  int max_blocks() const { return is_capped ? sms : INT_MAX; }
  int kernel_blocks() const { return kernel.is_persistent ? sms : max_blocks(); }

  // The bytes of the partial sums, a multiple of 16.
  int64_t partial_bytes(const Problem& problem) const;
  // workspace_bytes: all that the call needs.
  std::string describe(const CudaOp& op, const Problem& problem, const DeviceInfo& device,
                       int64_t workspace_bytes) const;
};

// What no CUDA kernel of `op` computes, although CPUs do.
Status check_cuda(const char* op, const Problem& problem, const DeviceInfo& device);

CudaPlan plan_cuda(const CudaOp& op, const Problem& problem, const KRule& rule,
                   const DeviceInfo& device, const Limits& limits);
CudaPlan known_plan_cuda(const CudaOp& op, const Problem& problem, const KRule& rule,
                         const DeviceInfo& device, const Limits& limits);  // made once a thread

// Launches the product and, where k is split, reduce(params, split, max_blocks, stream). partials: plan.partial_bytes(),
// 16-byte aligned.
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
