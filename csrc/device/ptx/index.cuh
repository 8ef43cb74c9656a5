// Where a thread is: reads of special registers. Twin: emu/index.h
#pragma once

#include <cstddef>

#include "device/types.h"

namespace lamina::dev {

// mov.u32 d, %tid.x;                                                      PTX ISA 1.0, sm_10
LAMINA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }

// Warps are runs of 32 threads in the order of their index. Not %laneid: of it the compiler knows
// neither range nor relation to the index; not %warpid: PTX lets it change while a thread runs.
// Unsigned, or the compiler rounds negative indices too.
LAMINA_DEVICE int lane() { return static_cast<int>(threadIdx.x % uint32_t{kWarpLanes}); }
LAMINA_DEVICE int warp() { return static_cast<int>(threadIdx.x / uint32_t{kWarpLanes}); }

// mov.u32 d, %ctaid.{x,y,z};                                              PTX ISA 1.0, sm_10
LAMINA_DEVICE Index3 block_index() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}

// mov.u32 d, %nctaid.{x,y,z};                                             PTX ISA 1.0, sm_10
LAMINA_DEVICE Index3 grid_size() {
  return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)};
}

// The block's LaunchShape::smem_bytes. 1024: what a TMA tile with a 128-byte swizzle asks for.
LAMINA_DEVICE std::byte* dynamic_smem() {
  extern __shared__ __align__(1024) std::byte lamina_dynamic_smem[];
  return lamina_dynamic_smem;
}

// cvta.to.shared.u64 d, smem;                                             PTX ISA 2.0, sm_20
// What instructions and matrix descriptors take for an address of shared memory: 32 bits are enough.
LAMINA_DEVICE uint32_t smem_address(const void* smem) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(smem));
}

}  // namespace lamina::dev
