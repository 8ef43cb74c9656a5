// paged_attention on a GPU: the kernels, the choice of one, and the launches of a call.
#pragma once

#include <string_view>
#include <vector>

#include "device/device_info.h"
#include "kv/error_word.h"
#include "ops/paged_attention/cuda/work.h"

namespace lamina::paged_attention {

enum class Elements { kHalf, kInt8, kE4M3 };  // of a cache; kHalf: those of q

// The arguments of the kernel, passed by value.
struct KernelArgs {
  Params p;
  Work work;
  kv::ErrorWord* error;
  Divisor page;
  int32_t group;
  int q_copy_bytes, k_copy_bytes, v_copy_bytes;  // bytes of one copy of a row: 16, 4 or 1
  const int32_t* depths;                         // [tokens], of nodes of trees, or not needed
};

struct CudaKernel {
  const char* name;
  int arch;  // compute capability: 80 and newer, or 90 alone
  int rows;  // of a tile
  int dim;   // the largest head_dim of keys and values
  Elements cache;
  int blocks_per_sm;    // upper limit set by the registers
  int smem_bytes;       // shared memory of a block
  int64_t slot_floats;  // of a partial result
  Status (*launch)(const KernelArgs&, void* stream);
};

// Every CUDA kernel in this build.
const std::vector<CudaKernel>& cuda_kernels();

// An error for a call that the CUDA kernels cannot compute, although the CPU kernels can.
Status check_cuda(const Params& params, const DeviceInfo& device);

// A call on a device: the kernel, and where its work lies in the workspace.
struct CudaPlan {
  CudaKernel kernel = {};  // its `launch` is nullptr if no allowed kernel can compute the call
  Work work;               // without addresses
  int64_t workspace_bytes = 0;
};

// only: the name that a kernel must have or begin with, for tests; empty: any. From host-known sizes alone: the lengths
// may change between replays of a graph.
CudaPlan plan_cuda(const Params& params, const DeviceInfo& device, std::string_view only);

// workspace: plan.workspace_bytes, 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

}  // namespace lamina::paged_attention
