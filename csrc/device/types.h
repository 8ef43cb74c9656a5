// The types that CUDA and the emulator share: launch shapes, vector words, cache hints, tensor maps; and the mark of a
// device function.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/swizzle.h"

#if defined(__CUDACC__)
#define LAMINA_DEVICE __device__ __forceinline__
#else
#define LAMINA_DEVICE inline
#endif

namespace lamina::dev {

inline constexpr int kWarpLanes = 32;
inline constexpr uint32_t kFullWarp = 0xffffffffu;

struct Index3 {
  int x = 0, y = 0, z = 0;
};

// Blocks are one-dimensional and have Kernel::kThreads threads.
struct LaunchShape {
  Index3 grid = {1, 1, 1};
  int smem_bytes = 0;  // dynamic shared memory of a block
  int cluster = 1;     // neighbouring blocks along x that run together; sm_90
  // The kernel may start while the kernel before it on the stream still runs, and must call
  // wait_for_previous(); sm_90.
  bool overlaps_previous = false;
};

struct alignas(8) U32x2 {
  uint32_t x[2];
};
struct alignas(16) U32x4 {
  uint32_t x[4];
};

// The cache policy of a global load.
enum class Cache {
  kDefault,
  kStream,  // for data read once: not kept in L1, first to leave L2
};

// A barrier in shared memory that counts arrivals and bytes. The state is opaque. PTX ISA, "mbarrier".
struct alignas(8) MBarrier {
  uint64_t state;
};

using lamina::Swizzle;
using lamina::swizzle_bytes;

// TMA's description of a tensor in global memory, opaque to kernels. A kernel takes it as a part of its Args.
struct alignas(128) TensorMap {
  std::byte opaque[128];
};

inline constexpr int kMaxTensorRank = 4;

// Extents, strides and boxes go from the fastest dimension, which is dense, to the slowest.
struct TensorMapSpec {
  const void* base = nullptr;
  int rank = 2;                               // 2 to 4
  int element_bytes = 1;                      // 1, 2, 4
  int64_t extent[kMaxTensorRank] = {};        // in elements
  int64_t stride_bytes[kMaxTensorRank] = {};  // [0] is not used
  int box[kMaxTensorRank] = {};               // in elements; one copy moves a box
  Swizzle swizzle = Swizzle::kNone;
};

}  // namespace lamina::dev
