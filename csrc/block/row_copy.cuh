// Copies of rows that do not start at multiples of 16 bytes.
#pragma once

#include "device/device.h"

namespace lamina {

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
    dev::U32x4 chunk{};
#pragma unroll
    for (int b = 0; b < 16; ++b)
      if (b < valid)
        chunk.x[b / 4] |= static_cast<uint32_t>(dev::load_global(from + b)) << (8 * (b % 4));
    dev::store_shared(reinterpret_cast<dev::U32x4*>(to), chunk);
  }
}

}  // namespace lamina
