// Reads rows of the cache into panels of dwords: keys transposed, values as they are. A dword holds one f32, which any
// element type becomes, or as many elements of the cache as fit. The rows may lie anywhere, so page size and layout do
// not matter here. Packing passes a Prefetch on, as a microkernel does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/int_math.h"
#include "base/numeric.h"
#include "base/unroll.h"
#include "ops/paged_attention/cpu/multiply.h"

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
    const auto value =
        Simd::mul(Simd::from_f16(Simd::bit_or(sign, Simd::template shift_left<7>(magnitude))),
                  Simd::set(256.0f));
    return Simd::if_less(Simd::to_floats(magnitude), Simd::set(126.5f), value,
                         Simd::as_float(Simd::set_int(0x7fc00000)));
  }
}

// The first `bytes` of memory, at most `room`, and zeros: for the ends of rows.
template <class Simd>
struct Some {
  alignas(64) char bytes[4 * Simd::kLanes] = {};
  Some(const void* from, int64_t count) { std::memcpy(bytes, from, static_cast<size_t>(count)); }
};

// Keys are transposed in pieces of kPieceKeys keys x kLanes dwords.
inline constexpr int kPieceKeys = 8;
template <class Simd>
constexpr int64_t pieces_of_block(int64_t dwords) {
  return Simd::kColumns / kPieceKeys * ceil_div(dwords, Simd::kLanes);
}

// The bits that turn keys of T into unsigned bytes for kWhole.
template <class T>
constexpr int32_t kFlipOf = std::is_same_v<T, int8_t> ? INT32_MIN | 0x808080 : 0;

// Stores a piece, given by the vectors of its keys, to columns of a panel.
template <class Simd, class T, bool kWhole>
LAMINA_INLINE inline void store_piece(typename Simd::I (&keys)[kPieceKeys], int32_t* to) {
  constexpr int kEach = kWhole ? 1 : 4 / sizeof(T), kStride = kEach * Simd::kColumns;
  Simd::transpose(keys);
  unroll<kPieceKeys>([&](auto v) LAMINA_INLINE {
    if constexpr (kWhole && kFlipOf<T> != 0) {
      Simd::template store_transposed<v>(to, kStride,
                                         Simd::bit_xor(keys[v], Simd::set_int(kFlipOf<T>)));
    } else if constexpr (kWhole) {
      Simd::template store_transposed<v>(to, kStride, keys[v]);
    } else {
      unroll<kEach>([&](auto e) LAMINA_INLINE {
        Simd::template store_transposed<v>(to + e * Simd::kColumns, kStride,
                                           Simd::as_int(element<Simd, T, e>(keys[v])));
      });
    }
  });
}

// Up to kColumns keys of `dim` elements T, transposed in dwords of the cache; 0 from `count` on, and for dwords up to a
// multiple of kLanes.
//   kWhole      panel[w][key] = dword w of a key; 128 is added to bytes, which become unsigned
//   otherwise   panel[i][key] = element i of a key, as f32
template <class Simd, class T, bool kWhole>
void pack_keys(const char* const* rows, int count, int64_t dim, int32_t* panel,
               Prefetch& prefetch) {
  constexpr int kLanes = Simd::kLanes, kEach = kWhole ? 1 : 4 / sizeof(T);
  const int64_t dwords = dim * static_cast<int64_t>(sizeof(T)) / 4;
  for (int key = 0; key < Simd::kColumns; key += kPieceKeys)
    for (int64_t at = 0; at < dwords; at += kLanes) {
      prefetch.pass();
      const int64_t width = std::min<int64_t>(kLanes, dwords - at);
      typename Simd::I keys[kPieceKeys];
      if (key + kPieceKeys <= count && width == kLanes) {
        unroll<kPieceKeys>([&](auto i)
                               LAMINA_INLINE { keys[i] = Simd::load_int(rows[key + i] + 4 * at); });
      } else {
        for (int i = 0; i < kPieceKeys; ++i)
          keys[i] = key + i < count
                        ? Simd::load_int(Some<Simd>(rows[key + i] + 4 * at, 4 * width).bytes)
                        : Simd::set_int(0);
      }
      store_piece<Simd, T, kWhole>(keys, panel + at * kEach * Simd::kColumns + key);
    }
}

// Packs blocks of keys for the next step while a microkernel multiplies those of this one: the ports of shuffles and of
// stores are idle then. T is as wide as the elements of the panel, or of their size in whole dwords.
template <class Simd, class T>
class KeysAhead {
 public:
  explicit KeysAhead(const Prefetch& prefetch) : prefetch_(prefetch) {}

  // Whole blocks of keys of whole vectors. passes: how often pass() will be called.
  void begin(const char* const* rows, int64_t blocks, int64_t dwords, int32_t* panel, int64_t block,
             int64_t passes) {
    rows_ = rows, panel_ = panel, to_ = panel;
    dwords_ = dwords, block_ = block;
    left_ = blocks * pieces_of_block<Simd>(dwords);
    each_ = ceil_div(left_, std::max<int64_t>(passes, 1));
  }
  LAMINA_INLINE void pass() {
    prefetch_.pass();
    for (int64_t i = std::min(each_, left_); i > 0; --i) pack_piece();
  }
  void finish() {
    while (left_ > 0) pack_piece();
  }

 private:
  LAMINA_INLINE void pack_piece() {
    typename Simd::I keys[kPieceKeys];
    unroll<kPieceKeys>([&](auto i) LAMINA_INLINE { keys[i] = Simd::load_int(rows_[i] + 4 * at_); });
    store_piece<Simd, T, true>(keys, to_);
    --left_;
    to_ += Simd::kLanes * Simd::kColumns;
    if ((at_ += Simd::kLanes) < dwords_) return;
    at_ = 0;
    rows_ += kPieceKeys;
    if ((key_ += kPieceKeys) == Simd::kColumns) {
      key_ = 0;
      panel_ += block_;
    }
    to_ = panel_ + key_;
  }

  Prefetch prefetch_;
  const char* const* rows_ = nullptr;
  int32_t *panel_ = nullptr, *to_ = nullptr;
  int64_t dwords_ = 0, block_ = 0, at_ = 0, key_ = 0, left_ = 0, each_ = 0;
};

// The work of a microkernel beside the product of keys.
template <class Simd, class T>
using KeySide = std::conditional_t<Simd::kPacksAhead, KeysAhead<Simd, T>, Prefetch>;

// Rows of values in a pass.
inline constexpr int kRowsOfPass = 2;
constexpr int64_t value_passes(int64_t rows) { return ceil_div(rows, kRowsOfPass); }

// panel[key][i] = element i as f32, with zeros from `dim` up to a multiple of kColumns.
template <class Simd, class T>
void widen_values(const char* const* rows, int64_t count, int64_t dim, int32_t* panel,
                  Prefetch& prefetch) {
  constexpr int kLanes = Simd::kLanes, kSize = static_cast<int>(sizeof(T));
  const int64_t stride = round_up(dim, Simd::kColumns);
  const auto put = [](int32_t* to, const void* from) LAMINA_INLINE {
    Simd::store_int(to, Simd::as_int(element<Simd, T, 0>(Simd::template widen<kSize>(from))));
  };
  for (int64_t key = 0; key < count; ++key, panel += stride) {
    if (key % kRowsOfPass == 0) prefetch.pass();
    for (int64_t at = 0; at < stride; at += kLanes) {
      const int64_t left = std::max<int64_t>(dim - at, 0);
      const char* from = rows[key] + at * kSize;
      if (left >= kLanes) {
        put(panel + at, from);
      } else {
        put(panel + at, Some<Simd>(from, left * kSize).bytes);
      }
    }
  }
}

// Copies rows of `dim` elements, and zeros up to a multiple of kColumns elements.
template <int64_t kSize, int64_t kColumns>
void pad_values(const char* const* rows, int64_t count, int64_t dim, int32_t* panel,
                Prefetch& prefetch) {
  const int64_t bytes = kSize * dim, padding = kSize * round_up(dim, kColumns) - bytes;
  char* to = reinterpret_cast<char*>(panel);
  for (int64_t key = 0; key < count; ++key, to += padding) {
    if (key % kRowsOfPass == 0) prefetch.pass();
    std::memcpy(to, rows[key], static_cast<size_t>(bytes));
    std::memset(to += bytes, 0, static_cast<size_t>(padding));
  }
}

// Part l of vector v in a block is columns 4 (kKeys l + v) to 4 (kKeys l + v) + 3.
template <class Simd, int kKeys>
void restore_columns(const float* from, int64_t dim, float* to) {
  constexpr int kPart = 4, kParts = Simd::kLanes / kPart, kBlock = Simd::kLanes * kKeys;
  for (int64_t at = 0; at < dim; at += kBlock)
    for (int v = 0; v < kKeys; ++v)
      for (int l = 0; l < kParts; ++l)
        std::memcpy(to + at + kPart * (kKeys * l + v), from + at + v * Simd::kLanes + kPart * l,
                    kPart * sizeof(float));
}

}  // namespace
}  // namespace lamina::paged_attention
