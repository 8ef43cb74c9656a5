// PTX ISA, "cvt" between .f32 and .f16 or .bf16, and half precision "add", "mul" and "fma": .rn,
// with subnormal numbers. Which NaN they return is not in the text, so any is right.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "buffer.h"

namespace lamina::test {

// A 16-bit float, by the IEEE 754 reading of its fields.
struct HalfFormat {
  const char* name;
  int fraction_bits, bias;

  int max_exponent() const { return (1 << (15 - fraction_bits)) - 1; }
  uint16_t infinity() const { return static_cast<uint16_t>(max_exponent() << fraction_bits); }
  bool is_nan(uint16_t bits) const { return (bits & 0x7fff) > infinity(); }
  bool is_finite(uint16_t bits) const { return (bits & 0x7fff) < infinity(); }
  // The value is significand 2^unit.
  int significand(uint16_t bits) const {
    const int fraction = bits & ((1 << fraction_bits) - 1),
              field = (bits & 0x7fff) >> fraction_bits;
    const int magnitude = field == 0 ? fraction : fraction + (1 << fraction_bits);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
  int unit(uint16_t bits) const {
    const int field = (bits & 0x7fff) >> fraction_bits;
    return (field == 0 ? 1 : field) - bias - fraction_bits;
  }
  double value(uint16_t bits) const {  // of a finite one
    const double magnitude = std::ldexp(std::abs(significand(bits)), unit(bits));
    return bits & 0x8000 ? -magnitude : magnitude;
  }
};

inline constexpr HalfFormat kF16{"f16", 10, 15}, kBf16{"bf16", 7, 127};

struct F32ToF16 {
  using In = float;
  using Out = uint16_t;
  LAMINA_DEVICE static uint16_t apply(float value) { return dev::f32_to_f16(value); }
};
struct F32ToBf16 {
  using In = float;
  using Out = uint16_t;
  LAMINA_DEVICE static uint16_t apply(float value) { return dev::f32_to_bf16(value); }
};
struct F16ToF32 {
  using In = uint16_t;
  using Out = float;
  LAMINA_DEVICE static float apply(uint16_t bits) { return dev::f16_to_f32(bits); }
};
struct Bf16ToF32 {
  using In = uint16_t;
  using Out = float;
  LAMINA_DEVICE static float apply(uint16_t bits) { return dev::bf16_to_f32(bits); }
};

template <class Op>
struct ConvertKernel : BlockOf<128> {
  struct Args {
    const typename Op::In* in;
    typename Op::Out* out;
    int count;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    for (int i = dev::thread_index(); i < args.count; i += kThreads)
      dev::store_global(args.out + i, Op::apply(dev::load_global(args.in + i)));
  }
};

template <class Op>
std::vector<typename Op::Out> convert(const std::vector<typename Op::In>& in) {
  DeviceBuffer<typename Op::In> gmem_in(in);
  DeviceBuffer<typename Op::Out> gmem_out(in.size());
  run<ConvertKernel<Op>>({gmem_in.data(), gmem_out.data(), static_cast<int>(in.size())});
  return gmem_out.read();
}

template <class Op>
void check_widening(const HalfFormat& format) {
  std::vector<uint16_t> in;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) in.push_back(static_cast<uint16_t>(bits));
  const std::vector<float> out = convert<Op>(in);
  for (const uint16_t bits : in) {
    at(format.name, " bits ", bits);
    if (format.is_nan(bits)) {
      CHECK(std::isnan(out[bits]));
    } else if (!format.is_finite(bits)) {
      CHECK_EQ(std::bit_cast<uint32_t>(out[bits]), bits & 0x8000 ? 0xff800000u : 0x7f800000u);
    } else {
      const float want = static_cast<float>(format.value(bits));
      CHECK_EQ(std::bit_cast<uint32_t>(out[bits]), std::bit_cast<uint32_t>(want));
    }
  }
}

TEST(vector_f16_to_f32) { check_widening<F16ToF32>(kF16); }
TEST(vector_bf16_to_f32) { check_widening<Bf16ToF32>(kBf16); }

// Each value, the middle between it and the next, and the f32 on either side of that middle.
template <class Op>
void check_narrowing(const HalfFormat& format) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> in;
  std::vector<uint16_t> want;
  const auto add = [&](float value, uint16_t bits) {
    in.push_back(value);
    want.push_back(bits);
    in.push_back(-value);
    want.push_back(bits | 0x8000);
  };
  for (uint16_t bits = 0; bits < format.infinity(); ++bits) {
    const uint16_t next = static_cast<uint16_t>(bits + 1);
    // A number past the largest counts as the next power of two.
    const double high = format.is_finite(next) ? format.value(next)
                                               : std::ldexp(1, format.max_exponent() - format.bias);
    const float middle = static_cast<float>((format.value(bits) + high) / 2);  // exact
    add(static_cast<float>(format.value(bits)), bits);
    add(middle, bits % 2 == 0 ? bits : next);
    add(std::nextafterf(middle, 0.0f), bits);
    add(std::nextafterf(middle, kInfinity), next);
  }
  add(kInfinity, format.infinity());
  add(std::numeric_limits<float>::max(), format.infinity());
  add(std::numeric_limits<float>::denorm_min(), 0);
  const std::vector<uint16_t> out = convert<Op>(in);
  for (size_t i = 0; i < in.size(); ++i) {
    at("f32 bits ", std::bit_cast<uint32_t>(in[i]), " to ", format.name);
    CHECK_EQ(out[i], want[i]);
  }
}

// f32 and 16-bit float, both as bits; 0xffff means any NaN.
template <class Op>
void check_narrowing_cases(const HalfFormat& format,
                           const std::vector<std::pair<uint32_t, uint16_t>>& cases) {
  std::vector<float> in;
  for (const auto& [bits, want] : cases) in.push_back(std::bit_cast<float>(bits));
  const std::vector<uint16_t> out = convert<Op>(in);
  for (size_t i = 0; i < cases.size(); ++i) {
    at("f32 bits ", cases[i].first, " to ", format.name);
    if (cases[i].second == 0xffff) {
      CHECK(format.is_nan(out[i]));
    } else {
      CHECK_EQ(out[i], cases[i].second);
    }
  }
}

TEST(vector_f32_to_f16) {
  check_narrowing<F32ToF16>(kF16);
  check_narrowing_cases<F32ToF16>(kF16, {{0x3f801000, 0x3c00},  // 1 + 2^-11: tie, to even
                                         {0x3f803000, 0x3c02},  // 1 + 3 2^-11: tie, to even
                                         {0x477fefff, 0x7bff},  // below 65520
                                         {0x477ff000, 0x7c00},  // 65520
                                         {0x33000000, 0x0000},  // 2^-25: tie, to even
                                         {0x33000001, 0x0001},
                                         {0xb3c00000, 0x8002},  // -3 2^-25: tie, to even
                                         {0x387fe000, 0x0400},  // from subnormal to normal
                                         {0x7fc00000, 0xffff},
                                         {0x7f800001, 0xffff},
                                         {0xffffe000, 0xffff}});
}
TEST(vector_f32_to_bf16) {
  check_narrowing<F32ToBf16>(kBf16);
  check_narrowing_cases<F32ToBf16>(kBf16, {{0x3f808000, 0x3f80},  // 1 + 2^-8: tie, to even
                                           {0x3f818000, 0x3f82},
                                           {0x3f808001, 0x3f81},
                                           {0x7f7f7fff, 0x7f7f},
                                           {0x7f7f8000, 0x7f80},
                                           {0x00008000, 0x0000},  // subnormal: tie, to even
                                           {0x80018000, 0x8002},
                                           {0x7fc00000, 0xffff},
                                           {0x7f800001, 0xffff},  // would be Inf if cut or rounded
                                           {0xffffffff, 0xffff}});
}

// units * 2^unit as a 16-bit float, rounded to nearest even, computed in integers throughout.
inline uint16_t round_exact(const HalfFormat& format, __int128 units, int unit,
                            bool zero_is_negative) {
  if (units == 0) return zero_is_negative ? 0x8000 : 0;
  const int sign = units < 0 ? 0x8000 : 0;
  unsigned __int128 magnitude =
      units < 0 ? -static_cast<unsigned __int128>(units) : static_cast<unsigned __int128>(units);
  // The unit of the result; the lowest is the unit of subnormals.
  int bits = 0;
  while (bits < 128 && magnitude >> bits != 0) ++bits;
  const int lowest = 1 - format.bias - format.fraction_bits;
  int to = std::max(unit + bits - 1 - format.fraction_bits, lowest);
  const int drop = to - unit;
  unsigned __int128 kept = 0;
  if (drop <= 0) {
    kept = magnitude << -drop;
  } else if (drop < 128) {
    const unsigned __int128 half = static_cast<unsigned __int128>(1) << (drop - 1);
    const unsigned __int128 rest = magnitude & (2 * half - 1);
    kept = magnitude >> drop;
    if (rest > half || (rest == half && kept % 2 == 1)) ++kept;
  }
  // A carry moves into the exponent by itself, and so does a subnormal that becomes normal.
  const int64_t field = kept >> format.fraction_bits == 0 ? 0 : to - lowest;
  const int64_t result = (field << format.fraction_bits) + static_cast<int64_t>(kept);
  return static_cast<uint16_t>(sign | std::min<int64_t>(result, format.infinity()));
}

// a * b + c for finite operands; the span of their exponents must fit 128 bits.
inline uint16_t fma_exact(const HalfFormat& format, uint16_t a, uint16_t b, uint16_t c) {
  const int unit_ab = format.unit(a) + format.unit(b);
  const int unit_c = format.significand(c) == 0 ? unit_ab : format.unit(c);
  const int unit = std::min(unit_ab, unit_c);
  const __int128 ab = static_cast<__int128>(format.significand(a)) * format.significand(b);
  const __int128 one = 1;
  const __int128 sum = ab * (one << (unit_ab - unit)) +
                       static_cast<__int128>(format.significand(c)) * (one << (unit_c - unit));
  // An exact zero is negative only if both terms are negative.
  const bool ab_negative = (a ^ b) & 0x8000, c_negative = c & 0x8000;
  return round_exact(format, sum, unit, ab_negative && c_negative);
}

struct PackedKernel : BlockOf<128> {
  enum Op { kAdd, kMul, kFma, kBf16Fma };
  struct Args {
    Op op;
    const uint32_t *a, *b, *c;
    uint32_t* d;
    int count;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    for (int i = dev::thread_index(); i < args.count; i += kThreads) {
      const uint32_t a = dev::load_global(args.a + i), b = dev::load_global(args.b + i),
                     c = dev::load_global(args.c + i);
      const uint32_t d = args.op == kAdd   ? dev::f16x2_add(a, b)
                         : args.op == kMul ? dev::f16x2_mul(a, b)
                         : args.op == kFma ? dev::f16x2_fma(a, b, c)
                                           : dev::bf16x2_fma(a, b, c);
      dev::store_global(args.d + i, d);
    }
  }
};

struct HalfCase {
  uint16_t a, b, c, want;  // c is ignored by add and mul; want 0xffff means any NaN
};

// Computes each case in the low half together with the next case in the high half.
inline void check_packed(PackedKernel::Op op, const HalfFormat& format,
                         const std::vector<HalfCase>& cases) {
  std::vector<uint32_t> a, b, c;
  for (size_t i = 0; i < cases.size(); ++i) {
    const HalfCase &low = cases[i], &high = cases[(i + 1) % cases.size()];
    a.push_back(static_cast<uint32_t>(high.a) << 16 | low.a);
    b.push_back(static_cast<uint32_t>(high.b) << 16 | low.b);
    c.push_back(static_cast<uint32_t>(high.c) << 16 | low.c);
  }
  DeviceBuffer<uint32_t> gmem_a(a), gmem_b(b), gmem_c(c), gmem_d(cases.size());
  run<PackedKernel>({op, gmem_a.data(), gmem_b.data(), gmem_c.data(), gmem_d.data(),
                     static_cast<int>(cases.size())});
  const std::vector<uint32_t> d = gmem_d.read();
  for (size_t i = 0; i < cases.size(); ++i)
    for (size_t half = 0; half < 2; ++half) {
      const HalfCase& one = cases[(i + half) % cases.size()];
      const uint16_t got = static_cast<uint16_t>(d[i] >> (16 * half));
      at("op ", static_cast<int>(op), " a ", one.a, " b ", one.b, " c ", one.c, " half ", half);
      if (one.want == 0xffff) {
        CHECK(format.is_nan(got));
      } else {
        CHECK_EQ(got, one.want);
      }
    }
}

// Random operands with exponent fields from `min_field` to `max_field`.
inline std::vector<HalfCase> random_cases(PackedKernel::Op op, const HalfFormat& format,
                                          int min_field, int max_field) {
  std::vector<HalfCase> cases;
  uint64_t state = 88172645463325252u;
  const auto draw = [&] {
    for (;;) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      const uint16_t bits = static_cast<uint16_t>(state >> 24);
      const int field = (bits & 0x7fff) >> format.fraction_bits;
      if (field >= min_field && field <= max_field) return bits;
    }
  };
  const uint16_t one = static_cast<uint16_t>(format.bias << format.fraction_bits);
  for (int i = 0; i < 20000; ++i) {
    HalfCase next{draw(), draw(), draw(), 0};
    if (i % 3 == 0) next.c = static_cast<uint16_t>(fma_exact(format, next.a, next.b, 0) ^ 0x8000);
    if (!format.is_finite(next.c)) next.c = one;  // else c cancels a * b but for a small exact rest
    next.want = op == PackedKernel::kAdd ? fma_exact(format, next.a, one, next.b)
                : op == PackedKernel::kMul
                    ? fma_exact(format, next.a, next.b, (next.a ^ next.b) & 0x8000 ? 0x8000 : 0)
                    : fma_exact(format, next.a, next.b, next.c);
    cases.push_back(next);
  }
  return cases;
}

TEST(vector_f16x2_add) {
  check_packed(PackedKernel::kAdd, kF16,
               {{0x3c00, 0x1000, 0, 0x3c00},    // 1 + 2^-11: tie, to even
                {0x3c01, 0x1000, 0, 0x3c02},    // tie, to even
                {0x7bff, 0x4c00, 0, 0x7c00},    // 65504 + 16: tie beyond the largest
                {0x7bff, 0x4bff, 0, 0x7bff},    // 65504 + 15.99
                {0x0001, 0x0001, 0, 0x0002},    // subnormals
                {0x03ff, 0x0001, 0, 0x0400},    // to the smallest normal
                {0x0400, 0x8001, 0, 0x03ff},    // and from it
                {0x3c00, 0xbc00, 0, 0x0000},    // 1 - 1 = +0
                {0x8000, 0x8000, 0, 0x8000},    // -0 - 0
                {0x8000, 0x0000, 0, 0x0000},    // -0 + 0
                {0x7c00, 0xfbff, 0, 0x7c00},    // Inf - 65504
                {0x7c00, 0xfc00, 0, 0xffff},    // Inf - Inf
                {0x7e00, 0x3c00, 0, 0xffff}});  // NaN + 1
  check_packed(PackedKernel::kAdd, kF16, random_cases(PackedKernel::kAdd, kF16, 0, 30));
}

TEST(vector_f16x2_mul) {
  check_packed(PackedKernel::kMul, kF16,
               {{0x0400, 0x3800, 0, 0x0200},    // 2^-14 / 2: subnormal
                {0x0001, 0x3800, 0, 0x0000},    // 2^-25: tie, to even
                {0x0003, 0x3800, 0, 0x0002},    // 3 2^-25: tie, to even
                {0x8001, 0x3800, 0, 0x8000},    // the sign of zero
                {0x7bff, 0x4000, 0, 0x7c00},    // 131008: too large
                {0xfbff, 0x4000, 0, 0xfc00},    // -131008
                {0x8000, 0x3c00, 0, 0x8000},    // -0 1
                {0x7c00, 0xc000, 0, 0xfc00},    // Inf -2
                {0x7c00, 0x0000, 0, 0xffff},    // Inf 0
                {0xfe00, 0x3c00, 0, 0xffff}});  // NaN 1
  check_packed(PackedKernel::kMul, kF16, random_cases(PackedKernel::kMul, kF16, 0, 30));
}

TEST(vector_f16x2_fma) {
  check_packed(
      PackedKernel::kFma, kF16,
      {{0x3c01, 0x3c01, 0xbc02, 0x0010},    // (1 + 2^-10)^2 - (1 + 2^-9) = 2^-20: one rounding
       {0x7bff, 0x4000, 0xfbff, 0x7bff},    // 131008 - 65504: the product does not overflow
       {0x7bff, 0x4000, 0xfc00, 0xfc00},    // 131008 - Inf
       {0x6490, 0x2c00, 0xd480, 0x3c00},    // (1024 + 9 16) / 16 - 72 = 1: int4 to f16
       {0x0001, 0x0001, 0x0001, 0x0001},    // 2^-48 is lost
       {0x0001, 0x0001, 0x3c00, 0x3c00},    // here too
       {0x3c01, 0x3800, 0x0001, 0x3801},    // 2^-24 lost beside 0.5
       {0x1400, 0x1000, 0x0000, 0x0008},    // 2^-10 2^-11 = 2^-21: subnormal
       {0xbc00, 0x3c00, 0x3c00, 0x0000},    // -1 + 1 = +0
       {0x8000, 0x3c00, 0x8000, 0x8000},    // -0 - 0
       {0x7c00, 0x0000, 0x3c00, 0xffff},    // Inf 0 + 1
       {0x7c00, 0x3c00, 0xfc00, 0xffff},    // Inf - Inf
       {0x3c00, 0x3c00, 0x7e00, 0xffff}});  // 1 + NaN
  check_packed(PackedKernel::kFma, kF16, random_cases(PackedKernel::kFma, kF16, 0, 30));
}

TEST(vector_bf16x2_fma) {
  check_packed(
      PackedKernel::kBf16Fma, kBf16,
      {{0x3f81, 0x3f81, 0xbf82, 0x3880},    // (1 + 2^-7)^2 - (1 + 2^-6) = 2^-14: one rounding
       {0x3f80, 0x3f80, 0x3b80, 0x3f80},    // 1 + 2^-8: tie, to even
       {0x3f81, 0x3f80, 0x3b80, 0x3f82},    // tie, to even
       {0x3f88, 0x3f88, 0x0000, 0x3f90},    // (1 + 2^-4)^2: tie, to even
       {0x3f88, 0x3f88, 0x0d80, 0x3f91},    // + 2^-100: no tie, however far away
       {0x3fe0, 0x3f14, 0x0000, 0x3f82},    // 259 / 256: tie, to even
       {0x3fe0, 0x3f14, 0x8d80, 0x3f81},    // - 2^-100
       {0x7f7f, 0x3f80, 0x7b00, 0x7f80},    // the largest + 2^119: tie beyond it
       {0x7f7f, 0x3f80, 0x7a80, 0x7f7f},    // + 2^118
       {0x7f7f, 0x4000, 0xff7f, 0x7f7f},    // the product does not overflow
       {0x0080, 0x3f00, 0x0000, 0x0040},    // 2^-126 / 2: subnormal
       {0x0001, 0x3f00, 0x0000, 0x0000},    // 2^-134: tie, to even
       {0x0003, 0x3f00, 0x0000, 0x0002},    // 3 2^-134: tie, to even
       {0x0001, 0x3f80, 0x0001, 0x0002},    // subnormals
       {0x4307, 0x3f80, 0xc300, 0x40e0},    // 135 - 128 = 7: int4 to bf16
       {0x3f80, 0xbf80, 0x3f80, 0x0000},    // -1 + 1 = +0
       {0x3f80, 0x8000, 0x8000, 0x8000},    // -0 - 0
       {0x7f80, 0x0000, 0x3f80, 0xffff},    // Inf 0 + 1
       {0x7f80, 0x3f80, 0xff80, 0xffff},    // Inf - Inf
       {0x7fc0, 0x3f80, 0x3f80, 0xffff}});  // NaN
  check_packed(PackedKernel::kBf16Fma, kBf16,
               random_cases(PackedKernel::kBf16Fma, kBf16, 127 - 20, 127 + 20));
}

}  // namespace lamina::test
