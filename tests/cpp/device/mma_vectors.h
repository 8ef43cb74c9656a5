// PTX ISA, "Matrix Fragments for mma.m16n8k32" (.s8, .u8) and "... for mma.m16n8k16 with floating
// point type".
#pragma once

#include <array>
#include <cmath>

#include "buffer.h"

namespace lamina::test {

struct RowColumn {
  int row, column;
};

// The text's formulas, element by element. Elements fill a fragment's registers from the low end.
//   groupID = %laneid >> 2, threadID_in_group = %laneid % 4

constexpr RowColumn int8_a(int lane, int i) {  // a0 to a15
  const int group = lane >> 2, thread = lane % 4;
  const int row = (0 <= i && i < 4) || (8 <= i && i < 12) ? group : group + 8;
  const int column = i < 8 ? thread * 4 + (i & 0x3) : thread * 4 + (i & 0x3) + 16;
  return {row, column};
}
constexpr RowColumn int8_b(int lane, int i) {  // b0 to b7
  const int group = lane >> 2, thread = lane % 4;
  const int row = i < 4 ? thread * 4 + (i & 0x3) : thread * 4 + (i & 0x3) + 16;
  return {row, group};
}
constexpr RowColumn half_a(int lane, int i) {  // a0 to a7
  const int group = lane >> 2, thread = lane % 4;
  const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
  const int column = i < 4 ? thread * 2 + (i & 0x1) : thread * 2 + (i & 0x1) + 8;
  return {row, column};
}
constexpr RowColumn half_b(int lane, int i) {  // b0 to b3
  const int group = lane >> 2, thread = lane % 4;
  const int row = i < 2 ? thread * 2 + (i & 0x1) : thread * 2 + (i & 0x1) + 8;
  return {row, group};
}
constexpr RowColumn any_c(int lane, int i) {  // c0 to c3, also d; both shapes
  const int group = lane >> 2, thread = lane % 4;
  return {i < 2 ? group : group + 8, thread * 2 + (i & 0x1)};
}

#define LAMINA_MMA_OP(Name, function, Element, Acc_)                                               \
  struct Name {                                                                                    \
    using Bits = Element;                                                                          \
    using Acc = Acc_;                                                                              \
    LAMINA_DEVICE static void apply(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
      dev::function(d, a, b);                                                                      \
    }                                                                                              \
  };
LAMINA_MMA_OP(MmaS8, mma_m16n8k32_s8, uint8_t, int32_t)
LAMINA_MMA_OP(MmaU8, mma_m16n8k32_u8, uint8_t, int32_t)
LAMINA_MMA_OP(MmaS8U8, mma_m16n8k32_s8u8, uint8_t, int32_t)
LAMINA_MMA_OP(MmaU8S8, mma_m16n8k32_u8s8, uint8_t, int32_t)
LAMINA_MMA_OP(MmaF16, mma_m16n8k16_f16, uint16_t, float)
LAMINA_MMA_OP(MmaBf16, mma_m16n8k16_bf16, uint16_t, float)
#undef LAMINA_MMA_OP

template <class Op>
struct MmaKernel : OneWarp {
  using Acc = typename Op::Acc;
  struct Args {
    const uint32_t* a;  // [lane][4]
    const uint32_t* b;  // [lane][2]
    const Acc* c;       // [lane][4]
    Acc* d;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int lane = dev::lane();
    uint32_t a[4], b[2];
    Acc d[4];
    for (int i = 0; i < 4; ++i) a[i] = dev::load_global(args.a + 4 * lane + i);
    for (int i = 0; i < 2; ++i) b[i] = dev::load_global(args.b + 2 * lane + i);
    for (int i = 0; i < 4; ++i) d[i] = dev::load_global(args.c + 4 * lane + i);
    Op::apply(d, a, b);
    for (int i = 0; i < 4; ++i) dev::store_global(args.d + 4 * lane + i, d[i]);
  }
};

// Matrices as stored bits; k is 32 for bytes, 16 for halves.
template <class Op>
struct Matrices {
  using Bits = typename Op::Bits;
  using Acc = typename Op::Acc;
  static constexpr int kPer = 4 / sizeof(Bits), kK = 8 * kPer;
  Bits a[16][kK] = {};
  Bits b[kK][8] = {};
  Acc c[16][8] = {};

  // d = a * b + c as the device computes it.
  std::array<std::array<Acc, 8>, 16> multiply() const {
    std::vector<uint32_t> frag_a(32 * 4), frag_b(32 * 2);
    std::vector<Acc> frag_c(32 * 4);
    const auto put = [](std::vector<uint32_t>& registers, int element, Bits bits) {
      registers[static_cast<size_t>(element / kPer)] |= static_cast<uint32_t>(bits)
                                                        << (32 / kPer * (element % kPer));
    };
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4 * kPer; ++i) {
        const RowColumn at = kPer == 4 ? int8_a(lane, i) : half_a(lane, i);
        put(frag_a, lane * 4 * kPer + i, a[at.row][at.column]);
      }
      for (int i = 0; i < 2 * kPer; ++i) {
        const RowColumn at = kPer == 4 ? int8_b(lane, i) : half_b(lane, i);
        put(frag_b, lane * 2 * kPer + i, b[at.row][at.column]);
      }
      for (int i = 0; i < 4; ++i) {
        const RowColumn at = any_c(lane, i);
        frag_c[static_cast<size_t>(lane * 4 + i)] = c[at.row][at.column];
      }
    }
    DeviceBuffer<uint32_t> gmem_a(frag_a), gmem_b(frag_b);
    DeviceBuffer<Acc> gmem_c(frag_c), gmem_d(32 * 4);
    run<MmaKernel<Op>>({gmem_a.data(), gmem_b.data(), gmem_c.data(), gmem_d.data()});
    const std::vector<Acc> frag_d = gmem_d.read();
    std::array<std::array<Acc, 8>, 16> d{};
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const RowColumn at = any_c(lane, i);
        d[static_cast<size_t>(at.row)][static_cast<size_t>(at.column)] =
            frag_d[static_cast<size_t>(lane * 4 + i)];
      }
    return d;
  }
};

// Compares with exact sums; value_a and value_b read the stored bits.
template <class Op, class Wide>
void check_mma(const Matrices<Op>& m, const auto& value_a, const auto& value_b,
               const auto& narrow) {
  const auto d = m.multiply();
  for (size_t row = 0; row < 16; ++row)
    for (size_t column = 0; column < 8; ++column) {
      Wide sum = static_cast<Wide>(m.c[row][column]);
      for (size_t p = 0; p < Matrices<Op>::kK; ++p)
        sum += static_cast<Wide>(value_a(m.a[row][p])) * static_cast<Wide>(value_b(m.b[p][column]));
      at("row ", row, " column ", column);
      CHECK_EQ(d[row][column], narrow(sum));
    }
}

template <class Op, class A, class B>
void check_integer_mma() {
  const auto check = [](const Matrices<Op>& m) {
    check_mma<Op, int64_t>(
        m, [](uint8_t bits) { return static_cast<A>(bits); },
        [](uint8_t bits) { return static_cast<B>(bits); },
        [](int64_t sum) { return static_cast<int32_t>(static_cast<uint32_t>(sum)); });
  };
  // All byte values, no two rows or columns alike.
  Matrices<Op> m;
  for (int row = 0; row < 16; ++row)
    for (int p = 0; p < 32; ++p)
      m.a[row][p] = static_cast<uint8_t>(row * 83 + p * 37 + row * p * 5 + 11);
  for (int p = 0; p < 32; ++p)
    for (int column = 0; column < 8; ++column)
      m.b[p][column] = static_cast<uint8_t>(p * 59 + column * 101 + p * column * 7 + 29);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      m.c[row][column] = row * 1000003 - column * 70001 + row * column * 97;
  check(m);
  // The largest products of each sign.
  for (uint8_t byte_a : {uint8_t{0x80}, uint8_t{0xff}, uint8_t{0x7f}}) {
    Matrices<Op> extreme;
    for (auto& row : extreme.a)
      for (uint8_t& bits : row) bits = byte_a;
    for (auto& row : extreme.b)
      for (int column = 0; column < 8; ++column)
        row[column] = std::array<uint8_t, 8>{
            0x80, 0xff, 0x7f, 1, 0, 0x81, 0xfe, 2}[static_cast<size_t>(column)];
    check(extreme);
  }
  // Without .satfinite, sums wrap.
  Matrices<Op> wrap;
  wrap.a[3][7] = wrap.b[7][5] = wrap.a[9][30] = 1;
  wrap.b[30][2] = 0xff;
  wrap.c[3][5] = 0x7fffffff;
  wrap.c[9][2] = -0x7fffffff - 1;
  check(wrap);
  CHECK_EQ(wrap.multiply()[3][5], -0x7fffffff - 1);
}

TEST(vector_mma_m16n8k32) {
  each_schedule([] {
    check_integer_mma<MmaS8, int8_t, int8_t>();
    check_integer_mma<MmaU8, uint8_t, uint8_t>();
    check_integer_mma<MmaS8U8, int8_t, uint8_t>();
    check_integer_mma<MmaU8S8, uint8_t, int8_t>();
  });
}

// One element in one register, followed by hand through the text's tables.
TEST(vector_mma_m16n8k32_single) {
  std::vector<uint32_t> a(128), b(64);
  std::vector<int32_t> zero(128);
  const auto multiply = [&] {
    DeviceBuffer<uint32_t> gmem_a(a), gmem_b(b);
    DeviceBuffer<int32_t> gmem_c(zero), gmem_d(128);
    run<MmaKernel<MmaU8>>({gmem_a.data(), gmem_b.data(), gmem_c.data(), gmem_d.data()});
    return gmem_d.read();
  };
  // Lane 5, register 2, byte 3 is a11: group 1, thread 1, so row 1 and column 4 + 3 + 16 = 23. With
  // b[23][column] = 10 + column, row 1 of d is in c0 and c1 of lanes 4 to 7.
  a[5 * 4 + 2] = 1u << 24;
  for (size_t column = 0; column < 8; ++column)
    b[(column * 4 + 1) * 2 + 1] = static_cast<uint32_t>(10 + column) << 24;  // b7 of thread 1
  std::vector<int32_t> want(128);
  for (size_t lane = 4; lane < 8; ++lane)
    for (size_t i = 0; i < 2; ++i)
      want[lane * 4 + i] = static_cast<int32_t>(10 + 2 * (lane - 4) + i);
  CHECK(multiply() == want);
  // Lane 22, register 1, byte 2 is b6: group 5, thread 2, so row 8 + 2 + 16 = 26 and column 5,
  // which is c1 and c3 of thread 2 of each group. a[row][26] = 20 + row is a10 or a14 of thread 2.
  std::fill(a.begin(), a.end(), 0u);
  std::fill(b.begin(), b.end(), 0u);
  std::fill(want.begin(), want.end(), 0);
  b[22 * 2 + 1] = 1u << 16;
  for (size_t group = 0; group < 8; ++group) {
    a[(group * 4 + 2) * 4 + 2] = static_cast<uint32_t>(20 + group) << 16;
    a[(group * 4 + 2) * 4 + 3] = static_cast<uint32_t>(28 + group) << 16;
    want[(group * 4 + 2) * 4 + 1] = static_cast<int32_t>(20 + group);
    want[(group * 4 + 2) * 4 + 3] = static_cast<int32_t>(28 + group);
  }
  CHECK(multiply() == want);
}

// A small number as a float with `fraction_bits`: eighths up to 4 are exact in both types.
inline uint16_t encode(double value, int fraction_bits, int bias) {
  if (value == 0) return 0;
  int exponent = 0;
  const double fraction = std::frexp(std::abs(value), &exponent) * 2 - 1;  // in [0, 1)
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent - 1 + bias) << fraction_bits |
                               static_cast<int>(std::ldexp(fraction, fraction_bits)));
}

template <class Op>
void check_half_mma(int fraction_bits, int bias) {
  // Multiples of 1/32 below 2^10: every sum is exact, in any order.
  double a[16][16], b[16][8];
  Matrices<Op> m;
  for (int row = 0; row < 16; ++row)
    for (int p = 0; p < 16; ++p) {
      a[row][p] = ((row * 5 + p * 3 + row * p) % 61 - 30) / 8.0;
      m.a[row][p] = encode(a[row][p], fraction_bits, bias);
    }
  for (int p = 0; p < 16; ++p)
    for (int column = 0; column < 8; ++column) {
      b[p][column] = ((p * 7 + column * 11 + p * column * 3) % 53 - 26) / 4.0;
      m.b[p][column] = encode(b[p][column], fraction_bits, bias);
    }
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column)
      m.c[row][column] = static_cast<float>(row * 100 - column * 7) / 32;
  const auto d = m.multiply();
  for (size_t row = 0; row < 16; ++row)
    for (size_t column = 0; column < 8; ++column) {
      double sum = static_cast<double>(m.c[row][column]);
      for (size_t p = 0; p < 16; ++p) sum += a[row][p] * b[p][column];
      at("row ", row, " column ", column);
      CHECK_EQ(d[row][column], static_cast<float>(sum));
    }
}

TEST(vector_mma_m16n8k16) {
  each_schedule([] {
    check_half_mma<MmaF16>(10, 15);
    check_half_mma<MmaBf16>(7, 127);
  });
}

TEST(vector_mma_m16n8k16_single) {
  std::vector<uint32_t> a(128), b(64);
  std::vector<float> want(128);
  // Lane 5, register 2, high half is a5: group 1, thread 1, so row 1 and column 2 + 1 + 8 = 11;
  // b[11][column] is b3 of thread 1. 0x3c00 is 1, 0x4000 + 0x100 n is 2 + n / 2 for n < 4.
  a[5 * 4 + 2] = 0x3c000000u;
  for (uint32_t column = 0; column < 4; ++column)
    b[(column * 4 + 1) * 2 + 1] = (0x4000u + 0x100u * column) << 16;
  want[4 * 4 + 0] = 2.0f;
  want[4 * 4 + 1] = 2.5f;
  want[5 * 4 + 0] = 3.0f;
  want[5 * 4 + 1] = 3.5f;
  DeviceBuffer<uint32_t> gmem_a(a), gmem_b(b);
  DeviceBuffer<float> gmem_c(std::vector<float>(128)), gmem_d(128);
  run<MmaKernel<MmaF16>>({gmem_a.data(), gmem_b.data(), gmem_c.data(), gmem_d.data()});
  CHECK(gmem_d.read() == want);
}

}  // namespace lamina::test
