// mma.sp of both shapes: fragments of a, b and the metadata as the text has them (sparse_vectors.h, mma_vectors.h).
#pragma once

#include "device/sparse.h"
#include "mma_vectors.h"
#include "sparse_vectors.h"

namespace lamina::test {

#define LAMINA_MMA_OP(Name, call, Element, Acc_)                                                 \
  template <int kSelector_>                                                                      \
  struct Name {                                                                                  \
    using Bits = Element;                                                                        \
    using Acc = Acc_;                                                                            \
    static constexpr size_t kSelector = kSelector_;                                              \
    LAMINA_DEVICE static void apply(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], \
                                    uint32_t metadata) {                                         \
      dev::call(d, a, b, metadata);                                                              \
    }                                                                                            \
  };
LAMINA_MMA_OP(SparseS8, mma_sparse_m16n8k64_s8, uint8_t, int32_t)
LAMINA_MMA_OP(SparseF16, mma_sparse_m16n8k32_f16<kSelector_>, uint16_t, float)
LAMINA_MMA_OP(SparseBf16, mma_sparse_m16n8k32_bf16<kSelector_>, uint16_t, float)
#undef LAMINA_MMA_OP

template <class Op>
struct MmaSparseKernel : OneWarp {
  using Acc = typename Op::Acc;
  struct Args {
    const uint32_t* a;  // [lane][4]
    const uint32_t* b;  // [lane][4]
    const uint32_t* metadata;
    const Acc* c;  // [lane][4]
    Acc* d;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int lane = dev::lane();
    uint32_t a[4], b[4];
    Acc d[4];
    for (int i = 0; i < 4; ++i) a[i] = dev::load_global(args.a + 4 * lane + i);
    for (int i = 0; i < 4; ++i) b[i] = dev::load_global(args.b + 4 * lane + i);
    for (int i = 0; i < 4; ++i) d[i] = dev::load_global(args.c + 4 * lane + i);
    Op::apply(d, a, b, dev::load_global(args.metadata + lane));
    for (int i = 0; i < 4; ++i) dev::store_global(args.d + 4 * lane + i, d[i]);
  }
};

// The text's formulas for a: element ai of register i / per is one of the kept elements of columns firstcol to lastcol.
//   bytes: row = groupID for 0 <= i < 4 || 8 <= i < 12, else groupID + 8; firstcol = threadID_in_group * 8 (+ 32 for
//   i >= 8), lastcol = firstcol + 7.   halves: 0 <= i < 2 || 4 <= i < 6; threadID_in_group * 4 (+ 16 for i >= 4), + 3
// b: bytes: row = threadID_in_group * 4 + (i & 3) + 16 (i / 4); halves: threadID_in_group * 2 + (i & 1) + 8 (i / 2).
template <class Op>
std::array<std::array<typename Op::Acc, 8>, 16> multiply_sparse(
    const std::vector<typename Op::Bits>& a, const std::vector<typename Op::Bits>& b,
    const std::vector<typename Op::Acc>& c) {
  using Bits = typename Op::Bits;
  using Acc = typename Op::Acc;
  constexpr size_t kPer = 4 / sizeof(Bits), kKept = 8 * kPer;
  std::vector<uint32_t> frag_a(32 * 4), frag_b(32 * 4);
  std::vector<Acc> frag_c(32 * 4);
  const auto bits = [](Bits value, size_t element) {
    return static_cast<uint32_t>(value) << (32 / kPer * (element % kPer));
  };
  for (size_t lane = 0; lane < 32; ++lane) {
    const size_t group = lane >> 2, thread = lane % 4;
    for (size_t i = 0; i < 4 * kPer; ++i) {
      const size_t row = i / kPer % 2 == 0 ? group : group + 8;
      // A row keeps half of its elements, so firstcol / 2 elements lie before.
      const size_t p = thread * kPer + i % kPer + (i >= 2 * kPer ? 4 * kPer : 0);
      frag_a[lane * 4 + i / kPer] |= bits(a[row * kKept + p], i);
      const size_t k = thread * kPer + i % kPer + 4 * kPer * (i / kPer);
      frag_b[lane * 4 + i / kPer] |= bits(b[k * 8 + group], i);
    }
    for (int i = 0; i < 4; ++i) {
      const RowColumn at = any_c(static_cast<int>(lane), i);
      frag_c[lane * 4 + static_cast<size_t>(i)] = c[static_cast<size_t>(at.row * 8 + at.column)];
    }
  }
  DeviceBuffer<uint32_t> gmem_a(frag_a), gmem_b(frag_b),
      metadata(warp_metadata(kPer == 4, Op::kSelector, 0));
  DeviceBuffer<Acc> gmem_c(frag_c), gmem_d(32 * 4);
  run<MmaSparseKernel<Op>>(
      {gmem_a.data(), gmem_b.data(), metadata.data(), gmem_c.data(), gmem_d.data()});
  const std::vector<Acc> frag_d = gmem_d.read();
  std::array<std::array<Acc, 8>, 16> d{};
  for (size_t lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const RowColumn at = any_c(static_cast<int>(lane), i);
      d[static_cast<size_t>(at.row)][static_cast<size_t>(at.column)] =
          frag_d[lane * 4 + static_cast<size_t>(i)];
    }
  return d;
}

TEST(vector_mma_sparse_m16n8k64) {
  each_schedule([] {
    // All byte values, no two rows or columns alike; sums that wrap in row 3.
    std::vector<uint8_t> a(16 * 32), b(64 * 8);
    std::vector<int32_t> c(16 * 8);
    for (size_t i = 0; i < a.size(); ++i)
      a[i] = static_cast<uint8_t>(i / 32 * 83 + i % 32 * 37 + i / 32 * (i % 32) * 5 + 11);
    for (size_t i = 0; i < b.size(); ++i)
      b[i] = static_cast<uint8_t>(i / 8 * 59 + i % 8 * 101 + i / 8 * (i % 8) * 7 + 29);
    for (size_t i = 0; i < c.size(); ++i)
      c[i] =
          i / 8 == 3 ? 0x7fffffff - static_cast<int32_t>(i % 8) : static_cast<int32_t>(i * 70001);
    const auto d = multiply_sparse<SparseS8<0>>(a, b, c);
    for (size_t row = 0; row < 16; ++row)
      for (size_t column = 0; column < 8; ++column) {
        int64_t sum = c[row * 8 + column];
        for (size_t p = 0; p < 32; ++p)
          sum += static_cast<int8_t>(a[row * 32 + p]) *
                 static_cast<int8_t>(b[kept_column(row, p) * 8 + column]);
        at("row ", row, " column ", column);
        CHECK_EQ(d[row][column], static_cast<int32_t>(static_cast<uint32_t>(sum)));
      }
  });
}

// Multiples of 1/32 below 2^10: every sum is exact, in any order. Where a column of b has a NaN, only rows that keep an
// element for it have one.
template <class Op>
void check_sparse_halves(int fraction_bits, int bias, uint16_t nan) {
  std::vector<double> a(16 * 16), b(32 * 8);
  std::vector<uint16_t> bits_a(a.size()), bits_b(b.size());
  std::vector<float> c(16 * 8);
  for (size_t i = 0; i < a.size(); ++i) {
    a[i] = (static_cast<int>(i / 16 * 5 + i % 16 * 3 + i / 16 * (i % 16)) % 61 - 30) / 8.0;
    bits_a[i] = encode(a[i], fraction_bits, bias);
  }
  for (size_t i = 0; i < b.size(); ++i) {
    b[i] = (static_cast<int>(i / 8 * 7 + i % 8 * 11 + i / 8 * (i % 8) * 3) % 53 - 26) / 4.0;
    bits_b[i] = encode(b[i], fraction_bits, bias);
  }
  constexpr size_t kNanK = 21, kNanColumn = 5;
  bits_b[kNanK * 8 + kNanColumn] = nan;
  for (size_t i = 0; i < c.size(); ++i) c[i] = static_cast<float>(i * 3) / 32;
  const auto d = multiply_sparse<Op>(bits_a, bits_b, c);
  size_t nans = 0;
  for (size_t row = 0; row < 16; ++row)
    for (size_t column = 0; column < 8; ++column) {
      double sum = static_cast<double>(c[row * 8 + column]);
      bool meets_nan = false;
      for (size_t p = 0; p < 16; ++p) {
        const size_t k = kept_column(row, p);
        meets_nan |= k == kNanK && column == kNanColumn;
        sum += a[row * 16 + p] * b[k * 8 + column];
      }
      at("row ", row, " column ", column);
      nans += meets_nan;
      if (meets_nan) {
        CHECK(std::isnan(d[row][column]));
      } else {
        CHECK_EQ(d[row][column], static_cast<float>(sum));
      }
    }
  CHECK(nans > 0 && nans < 16);
}

TEST(vector_mma_sparse_m16n8k32) {
  each_schedule([] {
    check_sparse_halves<SparseF16<0>>(10, 15, 0x7e00);
    check_sparse_halves<SparseF16<1>>(10, 15, 0x7e00);
    check_sparse_halves<SparseBf16<0>>(7, 127, 0x7fc0);
    check_sparse_halves<SparseBf16<1>>(7, 127, 0x7fc0);
  });
}

// One element in one register, followed by hand through the text's tables. Every other element of a is 0 and its metadata
// 0b0100.
TEST(vector_mma_sparse_m16n8k64_single) {
  std::vector<uint32_t> a(128), b(128), metadata(32, 0x44444444u);
  std::vector<int32_t> zero(128), want(128);
  // Lane 6, register 3, byte 2: group 1, thread 2, row 9, columns 32 + 16 to 32 + 23; bytes 2 and 3 are the kept elements
  // of the second four, columns 52 to 55. Row 9's metadata for columns 32 to 63 is lane 7's, nibble 5: 0b1101 keeps
  // elements 1 and 3. So byte 2 is a[9][53].
  a[6 * 4 + 3] = 5u << 16;
  metadata[7] = 0x44d44444u;
  // b[53][3]: 53 = 16 * 3 + 4 * 1 + 1, so register 3 of thread 1 of group 3, byte 1.
  b[(3 * 4 + 1) * 4 + 3] = 7u << 8;
  // d[9][3]: group 1, thread 1, c3.
  want[(1 * 4 + 1) * 4 + 3] = 35;
  DeviceBuffer<uint32_t> gmem_a(a), gmem_b(b), gmem_metadata(metadata);
  DeviceBuffer<int32_t> gmem_c(zero), gmem_d(128);
  run<MmaSparseKernel<SparseS8<0>>>(
      {gmem_a.data(), gmem_b.data(), gmem_metadata.data(), gmem_c.data(), gmem_d.data()});
  CHECK(gmem_d.read() == want);
}

TEST(vector_mma_sparse_m16n8k32_single) {
  std::vector<uint32_t> a(128), b(128), metadata(32, 0x44444444u);
  std::vector<float> zero(128), want(128);
  // Lane 6, register 3, high half: row 9, columns 16 + 8 to 16 + 11, second kept element. Selector 1: row 9's metadata for
  // columns 16 to 31 is in bits 31 to 16 of thread 3 of group 1, nibble 2 of these: 0b1001 keeps elements 1 and 2. So it
  // is a[9][26].
  a[6 * 4 + 3] = 0x4000u << 16;  // 2
  metadata[7] = 0x49444444u;
  // b[26][3]: 26 = 8 * 3 + 2 * 1 + 0, so register 3 of thread 1 of group 3, low half.
  b[(3 * 4 + 1) * 4 + 3] = 0x4200u;  // 3
  want[(1 * 4 + 1) * 4 + 3] = 6;
  DeviceBuffer<uint32_t> gmem_a(a), gmem_b(b), gmem_metadata(metadata);
  DeviceBuffer<float> gmem_c(zero), gmem_d(128);
  run<MmaSparseKernel<SparseF16<1>>>(
      {gmem_a.data(), gmem_b.data(), gmem_metadata.data(), gmem_c.data(), gmem_d.data()});
  CHECK(gmem_d.read() == want);
}

}  // namespace lamina::test
