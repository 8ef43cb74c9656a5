// A box of a tensor in global memory, as bulk copies read and write it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "device/types.h"

namespace lamina::dev::emu {

// One side of a bulk copy in global memory: a box of a tensor. Plain bytes are a tensor of rank 1.
struct Box {
  TensorMapSpec tensor;
  int32_t at[kMaxTensorRank] = {};

  int bytes() const;  // in shared memory, with the elements past the edges of the tensor
  // smem: the first byte of the box; address: its address in shared memory, which swizzles depend on.
  void load(std::byte* smem, uint32_t address) const;
  void store(const std::byte* smem, uint32_t address) const;
  std::vector<std::span<std::byte>> runs() const;  // the bytes that lie in the tensor
};

}  // namespace lamina::dev::emu
