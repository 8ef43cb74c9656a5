// Philox4x32-10: 128 random bits as a function of a key and a counter. Salmon et al., Parallel random numbers: as easy
// as 1, 2, 3, SC 2011. The asserts are the known answers that Random123, the authors' library, publishes.
#pragma once

#include <cstdint>

#include "base/unroll.h"

namespace lamina {

struct Philox {
  uint32_t word[4];

  constexpr bool operator==(const Philox&) const = default;
};

LAMINA_INLINE constexpr Philox philox(Philox counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(a)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

static_assert(philox({{0, 0, 0, 0}}, 0, 0) ==
              Philox{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
static_assert(philox({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u) ==
              Philox{{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
static_assert(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0) ==
              Philox{{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});

}  // namespace lamina
