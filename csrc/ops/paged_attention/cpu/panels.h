// Reads rows of the cache into panels of f32: keys transposed, values as they are. The rows may lie anywhere, so page size
// and layout do not matter here.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/int_math.h"
#include "base/numeric.h"
#include "base/unroll.h"

namespace lamina::paged_attention {
namespace {

// Element i of each dword as f32. T: float, F16, BF16, E4M3 or int8_t.
template <class Simd, class T, int i>
LAMINA_INLINE inline typename Simd::F element(typename Simd::I dwords) {
  if constexpr (sizeof(T) == 4) {
    return Simd::as_float(dwords);
  } else if constexpr (std::is_same_v<T, BF16>) {
    return Simd::as_float(i == 0 ? Simd::template shift_left<16>(dwords)
                                 : Simd::bit_and(dwords, Simd::set_int(INT32_MIN >> 15)));
  } else if constexpr (std::is_same_v<T, F16>) {
    return Simd::from_f16(Simd::template shift_right<16 * i>(dwords));
  } else if constexpr (std::is_same_v<T, int8_t>) {
    return Simd::to_floats(
        Simd::template shift_right_signed<24>(Simd::template shift_left<24 - 8 * i>(dwords)));
  } else {
    // An e4m3 as the f16 of the same fields is 2^8 times too small. The codes 0x7f and 0xff are NaN.
    const auto byte = Simd::template shift_right<8 * i>(dwords);
    const auto magnitude = Simd::bit_and(byte, Simd::set_int(0x7f));
    const auto sign = Simd::template shift_left<8>(Simd::bit_and(byte, Simd::set_int(0x80)));
    const auto value = Simd::mul(
        Simd::from_f16(Simd::bit_or(sign, Simd::template shift_left<7>(magnitude))), Simd::set(256.0f));
    return Simd::if_less(Simd::to_floats(magnitude), Simd::set(126.5f), value,
                         Simd::as_float(Simd::set_int(0x7fc00000)));
  }
}

// The first `bytes` of memory, at most the size of a vector, and zeros.
template <class Simd>
LAMINA_INLINE inline typename Simd::I load_some(const void* from, int64_t bytes) {
  alignas(64) char whole[4 * Simd::kLanes] = {};
  std::memcpy(whole, from, static_cast<size_t>(bytes));
  return Simd::load_int(whole);
}

// Up to kKeys keys of `dim` elements; panel[i][key] = element i of a key, or 0 from `count` on. Keys are transposed in
// dwords, which hold one, two or four elements.
template <class Simd, class T>
void pack_keys(const char* const* rows, int count, int64_t dim, float* panel) {
  constexpr int kLanes = Simd::kLanes, kKeys = Simd::kColumns;
  constexpr int kEach = 4 / sizeof(T);
  const int64_t dwords = dim / kEach;
  for (int key = 0; key < kKeys; key += kLanes)
    for (int64_t at = 0; at < dwords; at += kLanes) {
      const int64_t width = std::min<int64_t>(kLanes, dwords - at);
      float* to = panel + at * kEach * kKeys + key;
      typename Simd::I block[kLanes];
      const auto store = [&](auto i) LAMINA_INLINE {
        unroll<kEach>([&](auto e) LAMINA_INLINE {
          Simd::store(to + (i * kEach + e) * kKeys, element<Simd, T, e>(block[i]));
        });
      };
      if (key + kLanes <= count && width == kLanes) {
        unroll<kLanes>([&](auto i) LAMINA_INLINE {
          block[i] = Simd::load_int(rows[key + i] + 4 * at);
        });
        Simd::transpose(block);
        unroll<kLanes>(store);
        continue;
      }
      for (int i = 0; i < kLanes; ++i)
        block[i] = key + i < count ? load_some<Simd>(rows[key + i] + 4 * at, 4 * width)
                                   : Simd::set_int(0);
      Simd::transpose(block);
      for (int i = 0; i < width; ++i) store(i);
    }
}

// panel[key][i], with zeros from `dim` up to a multiple of kColumns.
template <class Simd, class T>
void pack_values(const char* const* rows, int count, int64_t dim, float* panel) {
  constexpr int kLanes = Simd::kLanes;
  const int64_t stride = round_up(dim, Simd::kColumns);
  for (int key = 0; key < count; ++key, panel += stride)
    for (int64_t at = 0; at < stride; at += kLanes) {
      const char* from = rows[key] + at * static_cast<int64_t>(sizeof(T));
      if (at + kLanes <= dim) {
        Simd::store(panel + at, element<Simd, T, 0>(Simd::template widen<sizeof(T)>(from)));
      } else {
        alignas(64) char some[4 * kLanes] = {};
        if (at < dim) std::memcpy(some, from, static_cast<size_t>(dim - at) * sizeof(T));
        Simd::store(panel + at, element<Simd, T, 0>(Simd::template widen<sizeof(T)>(some)));
      }
    }
}

}  // namespace
}  // namespace lamina::paged_attention
