// Emulates ptx/index.cuh.
#pragma once

#include "device/emu/executor.h"

namespace lamina::dev {

inline int thread_index() { return emu::thread_of(emu::self()); }
inline int lane() { return thread_index() % kWarpLanes; }
inline int warp() { return thread_index() / kWarpLanes; }
inline Index3 block_index() { return emu::block_index_of(emu::self()); }
inline Index3 grid_size() { return emu::grid_of(emu::self()); }

// Exactly LaunchShape::smem_bytes, 1024-byte aligned, poisoned at the start of a block.
inline std::byte* dynamic_smem() { return emu::smem_of(emu::self()); }

// The address of the first byte. It is not zero, so that code that forgets the base address fails.
inline constexpr uint32_t kSmemBase = 1024;
inline uint32_t smem_address(const void* smem) {
  return static_cast<uint32_t>(emu::smem_offset(smem)) + kSmemBase;
}

}  // namespace lamina::dev
