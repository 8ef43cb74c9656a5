// Exchange of registers between the lanes of a warp. All 32 lanes call each function.
// Emulator: emu/shuffle.h
#pragma once

#include <bit>

#include "device/types.h"

namespace lamina::dev {

// shfl.sync.{idx,bfly,up,down}.b32 d, a, b, c, 0xffffffff;                PTX ISA 6.0, sm_30
// d = a of lane b, lane ^ b, lane - b or lane + b, with b modulo 32. If there is no such lane, d is the lane's own a.
template <class T>
LAMINA_DEVICE T shuffle(T value, int from) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(__shfl_sync(kFullWarp, std::bit_cast<uint32_t>(value), from));
}
template <class T>
LAMINA_DEVICE T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(__shfl_xor_sync(kFullWarp, std::bit_cast<uint32_t>(value), mask));
}
template <class T>
LAMINA_DEVICE T shuffle_up(T value, int delta) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(
      __shfl_up_sync(kFullWarp, std::bit_cast<uint32_t>(value), static_cast<uint32_t>(delta)));
}
template <class T>
LAMINA_DEVICE T shuffle_down(T value, int delta) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(
      __shfl_down_sync(kFullWarp, std::bit_cast<uint32_t>(value), static_cast<uint32_t>(delta)));
}

// vote.sync.{any,all}.pred d, a, 0xffffffff;                              PTX ISA 6.0, sm_30
LAMINA_DEVICE bool any(bool value) { return __any_sync(kFullWarp, value) != 0; }
LAMINA_DEVICE bool all(bool value) { return __all_sync(kFullWarp, value) != 0; }

// vote.sync.ballot.b32 d, a, 0xffffffff;                                  PTX ISA 6.0, sm_30
// Bit l of d is a of lane l.
LAMINA_DEVICE uint32_t ballot(bool value) { return __ballot_sync(kFullWarp, value); }

}  // namespace lamina::dev
