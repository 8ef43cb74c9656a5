// Twin of ptx/atomic.cuh. One host thread runs all fibers: plain accesses are atomic. A load that
// acquires is how kernels wait for other blocks, so it lets others run first.
#pragma once

#include <cfloat>
#include <cmath>

#include "device/emu/executor.h"

namespace lamina::dev {

inline int32_t atomic_add(int32_t* at, int32_t value, emu::Where where = emu::Where::current()) {
  emu::check_access(at, 4, "atomic_add", where);
  const int32_t old = *at;
  *at = static_cast<int32_t>(static_cast<uint32_t>(old) + static_cast<uint32_t>(value));
  return old;
}
// atom.add.f32 on global memory takes subnormals, its own included, for zeros of their sign.
inline float atomic_add(float* at, float value, emu::Where where = emu::Where::current()) {
  emu::check_access(at, 4, "atomic_add", where);
  const auto flush = [](float v) { return std::abs(v) < FLT_MIN ? std::copysign(0.0f, v) : v; };
  const float old = *at;
  *at = flush(flush(old) + flush(value));
  return old;
}
inline int32_t load_acquire(const int32_t* at, emu::Where where = emu::Where::current()) {
  emu::check_access(at, 4, "load_acquire", where);
  emu::poll("load_acquire", where);
  return *at;
}
inline void store_release(int32_t* at, int32_t value, emu::Where where = emu::Where::current()) {
  emu::check_access(at, 4, "store_release", where);
  *at = value;
}
inline void reduce_release(int32_t* at, int32_t value, emu::Where where = emu::Where::current()) {
  (void)atomic_add(at, value, where);
}

}  // namespace lamina::dev
