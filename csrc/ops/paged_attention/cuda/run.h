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
  bool overlaps;  // the launch begins while the one before it, which plans, still runs
  kv::ErrorWord* error;
  Divisor page;
  int32_t group;
  int q_copy_bytes, k_copy_bytes, v_copy_bytes;  // bytes of one copy of a row: 16, 4 or 1
  bool values_match;  // whether each value lies value_distance bytes behind its key
  int64_t value_distance;
  const int32_t* depths;  // [tokens], of nodes of trees, or not needed
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

// All that a plan depends on. The lengths are not among them: they may change between replays of a graph.
struct Sizes {
  int64_t tokens, heads, kv_heads, head_dim, v_head_dim, requests, max_seqlen_q;
  int64_t page, max_blocks, tree_words;
  kv::CacheDType cache;
  bool batch_invariant, has_tree, has_depths, has_biases;  // has_biases: positions matter
};
Sizes sizes_of(const Params& params);

// A call on a device: the kernel, and where its work lies in the workspace.
struct CudaPlan {
  CudaKernel kernel = {};  // its `launch` is nullptr if no allowed kernel can compute the call
  Work work;               // without addresses
  bool overlaps = false;
  bool needs_depths = false;  // of nodes of trees
  int64_t workspace_bytes = 0;
};

// only: the name that a kernel must have or begin with, for tests; empty: any.
CudaPlan plan_cuda(const Sizes& sizes, const DeviceInfo& device, std::string_view only);
CudaPlan known_plan_cuda(const Sizes& sizes, const DeviceInfo& device,
                         std::string_view only);  // kept by each thread

// workspace: plan.workspace_bytes, 16-byte aligned.
Status run_cuda(const Params& params, const CudaPlan& plan, void* workspace, void* stream);

}  // namespace lamina::paged_attention
