// Emulates ptx/shuffle.cuh.
#pragma once

#include "device/emu/index.h"

namespace lamina::dev {
namespace emu {

// The values of all lanes.
template <class T>
std::array<T, kWarpLanes> exchange(const char* name, T value, Where where) {
  struct Arguments {
    T value;
    std::array<T, kWarpLanes> all;
  } mine{value, {}};
  meet(kFullWarp, name, where, &mine, [](const Lanes& lanes) {
    for (void* to : lanes)
      for (size_t from = 0; from < kWarpLanes; ++from)
        static_cast<Arguments*>(to)->all[from] = static_cast<Arguments*>(lanes[from])->value;
  });
  return mine.all;
}

// In every mode only the low five bits of the operand count.
inline int low_bits(int operand) { return operand & (kWarpLanes - 1); }

// The value of lane `from`, or this lane's own if there is no such lane.
template <class T>
T value_from(const char* name, T value, int from, Where where) {
  static_assert(sizeof(T) == 4);
  const std::array<T, kWarpLanes> all = exchange(name, value, where);
  return from >= 0 && from < kWarpLanes ? all[static_cast<size_t>(from)] : value;
}

}  // namespace emu

template <class T>
T shuffle(T value, int from, emu::Where where = emu::Where::current()) {
  return emu::value_from("shuffle", value, emu::low_bits(from), where);
}
template <class T>
T shuffle_xor(T value, int mask, emu::Where where = emu::Where::current()) {
  return emu::value_from("shuffle_xor", value, lane() ^ emu::low_bits(mask), where);
}
template <class T>
T shuffle_up(T value, int delta, emu::Where where = emu::Where::current()) {
  return emu::value_from("shuffle_up", value, lane() - emu::low_bits(delta), where);
}
template <class T>
T shuffle_down(T value, int delta, emu::Where where = emu::Where::current()) {
  return emu::value_from("shuffle_down", value, lane() + emu::low_bits(delta), where);
}

inline uint32_t ballot(bool value, emu::Where where = emu::Where::current()) {
  const auto all = emu::exchange("ballot", static_cast<uint32_t>(value), where);
  uint32_t bits = 0;
  for (size_t lane = 0; lane < kWarpLanes; ++lane) bits |= all[lane] << lane;
  return bits;
}
inline bool any(bool value, emu::Where where = emu::Where::current()) {
  return ballot(value, where) != 0;
}
inline bool all(bool value, emu::Where where = emu::Where::current()) {
  return ballot(value, where) == kFullWarp;
}

}  // namespace lamina::dev
