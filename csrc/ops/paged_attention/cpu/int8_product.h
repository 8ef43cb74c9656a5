// int8 keys and values with exact integer sums: four columns in a dword. Queries and weights become 16-bit integers, two
// planes of bytes each, so that they lose no more than 2^-16 of the largest of a row. Simd::dot_u8s8(sum, a, b) adds the
// products of four unsigned bytes of a and four signed bytes of b to each dword; interleave_bytes and interleave_halves
// interleave elements within each 128 bits; store_low_bytes stores the low bytes of all dwords.
#pragma once

#include "ops/paged_attention/cpu/products.h"

namespace lamina::paged_attention {
namespace {

template <class Simd>
struct Int8Product {
  static constexpr int kKeysPerDword = 4, kKeysPerStep = 4, kPlanes = 2, kExtra = 1;
  static constexpr int kValueColumns = 4 * Simd::kLanes;
  using F = typename Simd::F;
  using I = typename Simd::I;
  struct Dot {
    using Sum = I;
    static Sum sum(I bits) { return bits; }
    static I bits(Sum sum) { return sum; }
    LAMINA_INLINE static Sum add(Sum sum, I a, I b) { return Simd::dot_u8s8(sum, a, b); }
  };
  static void multiply(int64_t rows, const Operands& operands, Prefetch& prefetch) {
    paged_attention::multiply<Simd, Dot>(rows, operands, prefetch);
  }
  static int64_t passes(int64_t rows, int64_t k, int64_t blocks) {
    return paged_attention::passes<Simd>(rows, k, blocks);
  }
  Pack pack_keys = &paged_attention::pack_keys<Simd, int8_t, true>;
  Pack pack_values = &interleave_values<Simd, kKeysPerDword>;

  explicit Int8Product(kv::CacheDType) {}

  static int64_t dwords(int64_t dim) { return dim / 4; }

  // q = 256 (high - 128) + low, from the bytes of a plane each. The sums of up to 256 products fit int32.
  static float query(const float* row, int64_t dim, Planes to) {
    float largest = 0.0f, sum = 0.0f;
    for (int64_t i = 0; i < dim; ++i) {
      largest = std::max(largest, std::fabs(row[i]));
      sum += row[i] - row[i];  // NaN where an element is NaN or infinite
    }
    // Rows that small have scores of 0 in f32 too, unless keys or scales are huge.
    const float inverse = largest >= kTiny ? 32767.0f / largest : 0.0f;
    auto* high = reinterpret_cast<uint8_t*>(to.dwords);
    auto* low = reinterpret_cast<uint8_t*>(to.dwords + to.stride);
    for (int64_t i = 0; i < dim; ++i) {
      const int code = sum == 0.0f ? static_cast<int>(std::lrintf(row[i] * inverse)) + 32768 : 0;
      high[i] = static_cast<uint8_t>(code >> 8);
      low[i] = static_cast<uint8_t>(code & 255);
    }
    return sum == 0.0f ? (largest >= kTiny ? largest / 32767.0f : 0.0f) : sum;
  }
  // The sums of keys, which the offset of 128 needs.
  static void set_extra(int32_t* ones, int64_t dim) {
    std::memset(ones, 1, static_cast<size_t>(dim));
  }
  static void finish_scores(Planes row, const int32_t* sums, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j += Simd::kLanes) {
      const I high = Simd::load_int(row.dwords + j),
              low = Simd::load_int(row.dwords + row.stride + j);
      const I offset = Simd::template shift_left<7>(Simd::load_int(sums + j));
      const I score = Simd::add(Simd::template shift_left<8>(Simd::subtract(high, offset)), low);
      Simd::store(row.floats() + j, Simd::to_floats(score));
    }
  }
  static float finish_weights(Planes row, int64_t begin, int64_t end) {
    F largest = Simd::set(0.0f), sum = Simd::set(0.0f);
    for (int64_t j = begin; j < end; j += Simd::kLanes) {
      const F w = Simd::load(row.floats() + j);
      largest = Simd::max(w, largest);
      // NaN where a weight is NaN, infinite or, for a negative scale, negative.
      const F zero = Simd::sub(w, w);
      sum = Simd::add(sum, Simd::if_less(w, zero, Simd::set(NAN), zero));
    }
    alignas(64) float lanes[2][Simd::kLanes];
    Simd::store(lanes[0], largest);
    Simd::store(lanes[1], sum);
    float most = 0.0f, invalid = 0.0f;
    for (int i = 0; i < Simd::kLanes; ++i) {
      most = std::max(most, lanes[0][i]);
      invalid += lanes[1][i];
    }
    const float inverse = most >= kTiny ? 65535.0f / most : 0.0f;
    for (int64_t j = begin; j < end; j += Simd::kLanes) {
      const F scaled = Simd::mul(Simd::load(row.floats() + j), Simd::set(inverse));
      const I code = Simd::to_ints(Simd::min(scaled, Simd::set(65535.0f)));
      Simd::store_low_bytes(row.dwords + j / 4, Simd::template shift_right<8>(code));
      Simd::store_low_bytes(row.dwords + row.stride + j / 4, code);
    }
    return invalid == 0.0f ? (most >= kTiny ? most : 0.0f) : invalid;
  }
  // A plane's sum is at most 255 * 128 * 512 < 2^24, so it is exact in f32. The largest weight has code 65535, by which
  // the sums are divided: a key alone gives its value exactly.
  static void finish_vector(Planes sums, float factor, int64_t dim, float* vector) {
    for (int64_t i = 0; i < dim; i += Simd::kLanes) {
      const F high = Simd::to_floats(Simd::load_int(sums.dwords + i));
      const F low = Simd::to_floats(Simd::load_int(sums.dwords + sums.stride + i));
      const F sum = Simd::div(Simd::fma(high, Simd::set(256.0f), low), Simd::set(65535.0f));
      Simd::store(sums.floats() + i, Simd::mul(sum, Simd::set(factor)));
    }
    restore_columns<Simd, kKeysPerDword>(sums.floats(), dim, vector);
  }

 private:
  static constexpr float kTiny = 0x1p-100f;
};

}  // namespace
}  // namespace lamina::paged_attention
