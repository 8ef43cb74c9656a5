// What kernels share between CUDA and the host twin: launch shapes, vector words, cache hints, and how
// a function is marked.
#pragma once

#include <cstdint>

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

// Blocks are one-dimensional; Kernel::kThreads says how many threads they have.
struct LaunchShape {
  Index3 grid = {1, 1, 1};
  int smem_bytes = 0;  // dynamic shared memory of a block
};

struct alignas(8) U32x2 {
  uint32_t x[2];
};
struct alignas(16) U32x4 {
  uint32_t x[4];
};

// How long a line that a global load brings in is of use.
enum class Cache {
  kDefault,
  kStream,  // read once: not kept in L1, first to leave L2
};

}  // namespace lamina::dev
