// Emulates ptx/atomic.cuh. One host thread runs all fibers, so plain accesses are atomic. Kernels wait for other
// blocks with acquiring loads, so such a load lets other threads run first. If no polled value changes for a long
// time, the launch fails as a deadlock.
#pragma once

#include <cfloat>
#include <cmath>

#include "device/emu/memory.h"

namespace lamina::dev {
namespace emu {

template <class T>
void change(T* at, T value) {
  if (*at != value) note_progress();
  *at = value;
}
inline int32_t add(int32_t* at, int32_t value) {
  const int32_t old = *at;
  change(at, static_cast<int32_t>(static_cast<uint32_t>(old) + static_cast<uint32_t>(value)));
  return old;
}

}  // namespace emu

inline int32_t atomic_add(int32_t* at, int32_t value, emu::Where where = emu::Where::current()) {
  emu::update_global(at, false, "atomic_add", where);
  return emu::add(at, value);
}
// atom.add.f32 on global memory flushes subnormals, of its operands and of its result, to zeros of the same sign.
inline float atomic_add(float* at, float value, emu::Where where = emu::Where::current()) {
  emu::update_global(at, false, "atomic_add", where);
  const auto flush = [](float v) { return std::abs(v) < FLT_MIN ? std::copysign(0.0f, v) : v; };
  const float old = *at;
  emu::change(at, flush(flush(old) + flush(value)));
  return old;
}
inline int32_t atomic_cas(int32_t* at, int32_t compare, int32_t value,
                          emu::Where where = emu::Where::current()) {
  emu::update_global(at, false, "atomic_cas", where);
  const int32_t old = *at;
  if (old == compare) emu::change(at, value);
  return old;
}
inline int32_t load_acquire(const int32_t* at, emu::Where where = emu::Where::current()) {
  emu::poll("load_acquire", where);
  emu::acquire_global(at, "load_acquire", where);
  return *at;
}
inline void store_release(int32_t* at, int32_t value, emu::Where where = emu::Where::current()) {
  emu::release_global(at, "store_release", where);
  emu::change(at, value);
}
inline void reduce_release(int32_t* at, int32_t value, emu::Where where = emu::Where::current()) {
  emu::update_global(at, true, "reduce_release", where);
  (void)emu::add(at, value);
}

}  // namespace lamina::dev
