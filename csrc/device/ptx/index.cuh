// The place of a thread in its launch, read from special registers. Emulator: emu/index.h
#pragma once

#include <cstddef>

#include "device/types.h"

namespace lamina::dev {

// mov.u32 d, %tid.x;                                                      PTX ISA 1.0, sm_10
LAMINA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }

// Warps are runs of 32 threads in the order of their index. %laneid would not serve, because the compiler knows
// neither its range nor its relation to the index; %warpid would not serve, because PTX lets it change while a thread
// runs. The division is unsigned, so that the compiler need not handle negative indices.
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

// The block's LaunchShape::smem_bytes. A TMA tile with a 128-byte swizzle needs the alignment of 1024.
LAMINA_DEVICE std::byte* dynamic_smem() {
  extern __shared__ __align__(1024) std::byte lamina_dynamic_smem[];
  return lamina_dynamic_smem;
}

// cvta.to.shared.u64 d, smem;                                             PTX ISA 2.0, sm_20
// The address of shared memory in the form of instructions and matrix descriptors: 32 bits are enough.
LAMINA_DEVICE uint32_t smem_address(const void* smem) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(smem));
}

}  // namespace lamina::dev
