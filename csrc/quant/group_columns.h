// Loads the scales or zero points of one group for the columns of a strip, converted to f32. Each ISA compiles its
// own copy: gemm/cpu/int8_nest.h says why.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/f16c.h"
#include "base/numeric.h"
#include "base/prefetch_line.h"
#include "base/unroll.h"
#include "quant/group_tensor.h"

namespace lamina {
namespace {

template <class T>
LAMINA_NOINLINE void load_as(const T* __restrict from, int64_t stride, int count, float sign,
                             float* __restrict to) {
  const auto value = [](T element) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      return static_cast<float>(element);
    } else {
      return to_f32(element);
    }
  };
  if (stride == 1) {
    int j = 0;
    if constexpr (std::is_same_v<T, F16>) j = convert_f16(from, count, sign, to);
    for (; j < count; ++j) to[j] = sign * value(from[j]);
  } else {
    for (int j = 0; j < count; ++j) to[j] = sign * value(from[j * stride]);
  }
}

// Input features by which the prefetches of scales and zero points run ahead, but at least one group. They halve the time
// of one row with groups of 32 (2026-11, Zen 4, W4A16, 4096 x 4096: 949 to 494 us).
inline constexpr int64_t kScalesAheadK = 128;

// Prefetches the values of a group, which lie pages behind those of the group before it, so that no processor does so
// by itself. Behind the last of all `groups` come those of the next columns; the matrix need not have them.
LAMINA_INLINE inline void prefetch_columns(const GroupTensor& from, int64_t group, int64_t groups,
                                           int64_t n0, int count) {
  if (from.stride != 1) return;
  if (group >= groups) {
    group -= groups;
    n0 += count;
  }
  const int64_t bytes = from.element_bytes();
  const auto address = reinterpret_cast<uintptr_t>(from.data) +
                       static_cast<uintptr_t>((group * from.group_stride + n0) * bytes);
  for (int64_t at = 0; at < count * bytes; at += 64)
    prefetch_line(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(at)));
}

// to[j] = sign * the value of column n0 + j, for j < count; the rest of `to` becomes 0.
template <int kTo>
void load_columns(const GroupTensor& from, int64_t group, int64_t n0, int count, float sign,
                  float (&to)[kTo]) {
  const auto load = [&](const auto* data) {
    load_as(data + group * from.group_stride + n0 * from.stride, from.stride, count, sign, to);
  };
  for (int j = count; j < kTo; ++j) to[j] = 0.0f;
  switch (from.kind) {
    case GroupTensor::Kind::kF32:
      return load(static_cast<const float*>(from.data));
    case GroupTensor::Kind::kF16:
      return load(static_cast<const F16*>(from.data));
    case GroupTensor::Kind::kBF16:
      return load(static_cast<const BF16*>(from.data));
    case GroupTensor::Kind::kU8:
      return load(static_cast<const uint8_t*>(from.data));
  }
}

}  // namespace
}  // namespace lamina
