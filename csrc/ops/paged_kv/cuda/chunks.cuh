// Rows of bytes as chunks of 16, for the kernels that move rows without looking at them.
#pragma once

#include "block/row_alignment.h"
#include "block/row_copy.cuh"
#include "ops/paged_kv/moved.h"

namespace lamina::paged_kv {

inline constexpr int kChunkBytes = 16;

// Bytes that one load moves, where runs of `run_bytes` lie at any page, slot and head.
inline int copy_bytes_of(const Moved& moved, int64_t run_bytes) {
  const int64_t distances =
      moved.page_stride | moved.slot_stride | moved.head_stride | run_bytes | kChunkBytes;
  const uint64_t low = reinterpret_cast<uintptr_t>(moved.data) | static_cast<uint64_t>(distances);
  return lamina::copy_bytes_of(static_cast<int>(low & ~(low - 1)));
}

// The bytes of one chunk of a run.
constexpr int chunk_bytes(int64_t run_bytes, int64_t chunk) {
  const int64_t rest = run_bytes - chunk * kChunkBytes;
  return rest < kChunkBytes ? static_cast<int>(rest) : kChunkBytes;
}

}  // namespace lamina::paged_kv
