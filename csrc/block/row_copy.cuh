// Copies of rows of any alignment, 16 bytes at a time.
#pragma once

#include "device/device.h"

namespace lamina {

// The first `valid` of 16 bytes, with zeros behind them, `copy_bytes` (16, 4 or 1) at a time. copy_bytes divides the
// address and `valid`.
LAMINA_DEVICE dev::U32x4 load_chunk(int copy_bytes, const std::byte* from, int valid) {
  dev::U32x4 chunk{};
  if (copy_bytes == 16) return dev::load_global(reinterpret_cast<const dev::U32x4*>(from));
  if (copy_bytes == 4) {
#pragma unroll
    for (int w = 0; w < 4; ++w)
      if (4 * w < valid) chunk.x[w] = dev::load_global(reinterpret_cast<const uint32_t*>(from) + w);
  } else {
#pragma unroll
    for (int b = 0; b < 16; ++b)
      if (b < valid)
        chunk.x[b / 4] |= static_cast<uint32_t>(dev::load_global(from + b)) << (8 * (b % 4));
  }
  return chunk;
}

// Stores the first `valid` bytes of a chunk, under the conditions of load_chunk.
LAMINA_DEVICE void store_chunk(int copy_bytes, std::byte* to, const dev::U32x4& chunk, int valid) {
  if (copy_bytes == 16) {
    dev::store_global(reinterpret_cast<dev::U32x4*>(to), chunk);
  } else if (copy_bytes == 4) {
#pragma unroll
    for (int w = 0; w < 4; ++w)
      if (4 * w < valid) dev::store_global(reinterpret_cast<uint32_t*>(to) + w, chunk.x[w]);
  } else {
#pragma unroll
    for (int b = 0; b < 16; ++b)
      if (b < valid)
        dev::store_global(to + b, static_cast<std::byte>(chunk.x[b / 4] >> (8 * (b % 4))));
  }
}

// Copies the first `valid` of 16 bytes into shared memory and fills the rest with zeros, `copy_bytes` (4 or 1) at a
// time. base: any readable address that 4 divides.
LAMINA_DEVICE void copy_unaligned(int copy_bytes, std::byte* to, const std::byte* from,
                                  const std::byte* base, int valid) {
  if (copy_bytes == 4) {
#pragma unroll
    for (int b = 0; b < 16; b += 4) {
      const int rest = valid - b < 0 ? 0 : valid - b > 4 ? 4 : valid - b;
      dev::cp_async<4>(to + b, rest > 0 ? from + b : base, rest);
    }
  } else {
    dev::store_shared(reinterpret_cast<dev::U32x4*>(to), load_chunk(1, from, valid));
  }
}

}  // namespace lamina
