// int8 keys and values with exact integer sums: four columns in a dword. Queries and weights become 16-bit integers, two
// planes of bytes each, so that they lose no more than 2^-16 of the largest of a row. Simd::dot_u8s8(sum, a, b) adds the
// products of four unsigned bytes of a and four signed bytes of b to each dword; interleave_bytes and interleave_halves
// interleave elements within each 128 bits; store_low_bytes stores the low bytes of all dwords; max_bits is the larger of
// two unsigned dwords.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "ops/paged_attention/cpu/products.h"

namespace lamina::paged_attention {
namespace {

template <class Simd>
struct Int8Product {
  static constexpr int kKeysPerDword = 4, kKeysPerStep = 4, kPlanes = 2;
  static constexpr int kValueColumns = 4 * Simd::kLanes;
  using Values = Rows<kKeysPerDword>;
  using F = typename Simd::F;
  using I = typename Simd::I;
  struct Integers {
    using Sum = I;
    static Sum sum(I bits) { return bits; }
    static I bits(Sum sum) { return sum; }
  };
  // Keys are unsigned and queries signed; weights are unsigned and values signed.
  struct KeyDot : Integers {
    LAMINA_INLINE static I add(I sum, I q, I k) { return Simd::dot_u8s8(sum, k, q); }
  };
  struct ValueDot : Integers {
    LAMINA_INLINE static I add(I sum, I w, I v) { return Simd::dot_u8s8(sum, w, v); }
  };
  using Side = KeySide<Simd, int8_t>;
  static void multiply_keys(int64_t rows, const Operands<Panel>& o, Side& side) {
    multiply<Simd, KeyDot>(rows, o, side);
  }
  static void multiply_values(int64_t rows, const Operands<Values>& o, Prefetch& prefetch) {
    multiply<Simd, ValueDot>(rows, o, prefetch);
  }
  template <class B>
  static int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
    return paged_attention::passes<Simd, B>(rows, k, blocks);
  }
  PackKeys pack_keys = &paged_attention::pack_keys<Simd, int8_t, true>;
  PrepareValues prepare_values = nullptr;
  static constexpr bool packs_ahead = Simd::kPacksAhead;

  Int8Product(kv::CacheDType, int64_t value_dim) {
    if (value_dim % kValueColumns != 0) prepare_values = &pad_values<1, kValueColumns>;
  }

  static int64_t dwords(int64_t dim) { return dim / 4; }

  // q = 256 high + low, signed bytes. Keys have 128 added to them, which adds 128 sum(q) to a dot product. Sums wrap; a
  // dot product of up to 256 elements fits int32.
  static Query query(const float* row, int64_t dim, Planes to) {
    float largest = 0.0f, sum = 0.0f;
    for (int64_t i = 0; i < dim; ++i) {
      largest = std::max(largest, std::fabs(row[i]));
      sum += row[i] - row[i];  // NaN where an element is NaN or infinite
    }
    // Rows that small have scores of 0 in f32 too, unless keys or scales are huge.
    const bool has_codes = sum == 0.0f && largest >= kTiny;
    const float inverse = has_codes ? kLargestQuery / largest : 0.0f;
    auto* high = reinterpret_cast<int8_t*>(to.dwords);
    auto* low = reinterpret_cast<int8_t*>(to.dwords + kRowStride);
    int32_t codes = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const int code = has_codes ? static_cast<int>(std::lrintf(row[i] * inverse)) : 0;
      low[i] = static_cast<int8_t>(code);
      high[i] = static_cast<int8_t>((code - low[i]) / 256);
      codes += code;
    }
    return {sum == 0.0f ? (has_codes ? largest / kLargestQuery : 0.0f) : sum, 128 * codes};
  }
  static float score(Planes planes, Query query, const ScoreRow& row) {
    const I offset = Simd::set_int(query.offset);
    return largest_score<Simd, false>(row, [&](int64_t j) LAMINA_INLINE {
      const I high = Simd::load_int(planes.dwords + j),
              low = Simd::load_int(planes.dwords + kRowStride + j);
      return Simd::to_floats(
          Simd::subtract(Simd::add(Simd::template shift_left<8>(high), low), offset));
    });
  }
  static float weigh(Planes planes, const ScoreRow& row, float highest, float& sum) {
    I largest = Simd::set_int(0);
    sum = weigh_row<Simd>(row, highest, [&](int64_t j, auto& w) LAMINA_INLINE {
      unroll<kAlign / Simd::kLanes>([&](auto i) LAMINA_INLINE {
        // The bits of a NaN, of an Inf and, for a negative scale, of a negative weight are larger than those of numbers.
        largest = Simd::max_bits(largest, Simd::as_int(w[i]));
        Simd::store(row.scores + j + i * Simd::kLanes, w[i]);
      });
    });
    alignas(64) uint32_t lanes[Simd::kLanes];
    Simd::store_int(reinterpret_cast<int32_t*>(lanes), largest);
    const float most = std::bit_cast<float>(*std::max_element(lanes, lanes + Simd::kLanes));
    const bool is_valid = most < kInfinity && !std::signbit(most);
    const float inverse = is_valid && most >= kTiny ? kLargestWeight / most : 0.0f;
    for (int64_t j = row.begin(); j < row.end(); j += Simd::kLanes) {
      const I code = Simd::to_ints(Simd::mul(Simd::load(row.scores + j), Simd::set(inverse)));
      Simd::store_low_bytes(planes.dwords + j / 4, Simd::template shift_right<8>(code));
      Simd::store_low_bytes(planes.dwords + kRowStride + j / 4, code);
    }
    return is_valid ? (most >= kTiny ? most : 0.0f) : std::numeric_limits<float>::quiet_NaN();
  }
  // A plane's sum is at most 255 * 128 * 512 < 2^24, so it is exact in f32. The largest weight has code 65535, by which
  // the sums are divided: a key alone gives its value exactly.
  static void finish_vector(Planes sums, float factor, int64_t dim, float* vector) {
    for (int64_t i = 0; i < dim; i += Simd::kLanes) {
      const F high = Simd::to_floats(Simd::load_int(sums.dwords + i));
      const F low = Simd::to_floats(Simd::load_int(sums.dwords + kRowStride + i));
      const F sum = Simd::div(Simd::fma(high, Simd::set(256.0f), low), Simd::set(kLargestWeight));
      Simd::store(vector + i, Simd::mul(sum, Simd::set(factor)));
    }
  }
  static const float* in_order(const float* vector, int64_t dim, float* room) {
    restore_columns<Simd, kKeysPerDword>(vector, dim, room);
    return room;
  }

 private:
  static constexpr float kTiny = 0x1p-100f, kLargestWeight = 65535.0f;
  static constexpr float kLargestQuery = 127.0f * 257.0f;  // both bytes are at most 127
};

}  // namespace
}  // namespace lamina::paged_attention
