// wgmma.m64nNk16 on f16 and bf16: K-major and MN-major operands with every swizzle.
#pragma once

#include "wgmma_vectors.h"

namespace lamina::test {

#define LAMINA_WGMMA_OP(Name, function, Half_)                                   \
  template <int kN_, bool kTransA_, bool kTransB_>                               \
  struct Name {                                                                  \
    using Half = Half_;                                                          \
    using Bits = uint16_t;                                                       \
    using Acc = float;                                                           \
    static constexpr int kN = kN_;                                               \
    static constexpr bool kTransA = kTransA_, kTransB = kTransB_;                \
    LAMINA_DEVICE static void apply(Acc (&d)[kN / 2], const auto& a, uint64_t b, \
                                    bool accumulate) {                           \
      dev::function<kN, kTransA, kTransB>(d, a, b, accumulate);                  \
    }                                                                            \
  };
LAMINA_WGMMA_OP(WgmmaF16, wgmma_m64k16_f16, F16)
LAMINA_WGMMA_OP(WgmmaBf16, wgmma_m64k16_bf16, BF16)
#undef LAMINA_WGMMA_OP

// Multiples of 1/32 below 2^12: every sum is exact, in any order.
template <class Op>
void check_wgmma_halves(Swizzle swizzle_a, Swizzle swizzle_b, bool gap) {
  using Half = typename Op::Half;
  // A K-major tile is at most one span wide.
  const bool is_narrow =
      (!Op::kTransA && swizzle_a == Swizzle::k32) || (!Op::kTransB && swizzle_b == Swizzle::k32);
  const size_t k = is_narrow ? 16 : 32;
  const auto layout = [&](Swizzle swizzle, bool is_mn_major, int rows) {
    return is_mn_major ? mn_major(swizzle, gap, rows, static_cast<int>(k))
                       : k_major(swizzle, gap, rows);
  };
  WgmmaCase<Op> m{k, layout(swizzle_a, Op::kTransA, 64), layout(swizzle_b, Op::kTransB, Op::kN),
                  gap};
  for (size_t i = 0; i < m.a.size(); ++i) {
    const size_t row = i / k, p = i % k;
    const int value = static_cast<int>((row * 5 + p * 3 + row * p) % 61) - 30;
    m.a[i] = from_f32<Half>(static_cast<float>(value) / 8).bits;
  }
  for (size_t i = 0; i < m.b.size(); ++i) {
    const size_t column = i / k, p = i % k;
    const int value = static_cast<int>((p * 7 + column * 11 + p * column * 3) % 53) - 26;
    m.b[i] = from_f32<Half>(static_cast<float>(value) / 4).bits;
  }
  for (size_t i = 0; i < m.c.size(); ++i)
    m.c[i] = static_cast<float>(static_cast<int>(i / m.kN * 100) - static_cast<int>(i % m.kN)) / 32;
  const auto value = [](uint16_t bits) { return to_f32(Half{bits}); };
  m.template check<double, false>(value, value);
  if constexpr (!Op::kTransA) m.template check<double, true>(value, value);
}

template <template <int, bool, bool> class Op, int kN>
void check_wgmma_majors() {
  constexpr Swizzle kAll[] = {Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128};
  for (bool gap : {false, true}) {
    if (gap && kN > 96) continue;
    for (Swizzle swizzle : kAll) {
      check_wgmma_halves<Op<kN, false, false>>(swizzle, swizzle, gap);
      check_wgmma_halves<Op<kN, false, true>>(Swizzle::k128, swizzle, gap);
      check_wgmma_halves<Op<kN, true, false>>(swizzle, Swizzle::k128, gap);
      check_wgmma_halves<Op<kN, true, true>>(Swizzle::k128, swizzle, gap);
    }
  }
}

TEST(vector_wgmma_m64k16) {
  each_schedule([] {
    check_wgmma_majors<WgmmaF16, 8>();
    check_wgmma_majors<WgmmaF16, 24>();
    check_wgmma_majors<WgmmaBf16, 64>();
  });
  check_wgmma_majors<WgmmaF16, 96>();
  check_wgmma_majors<WgmmaBf16, 256>();
}

// One element by hand: d[41][13] = a[41][11] * b[11][13], as bf16 bits of 2 and 3, in N-major 128 B.
TEST(vector_wgmma_m64k16_single) {
  std::vector<std::byte> smem(kWgmmaSmemA + kWgmmaSmemB);
  std::vector<uint32_t> frag_a(128 * 4);
  std::vector<float> zero(128 * 8), want(128 * 8);
  // Row 41 is row 9 of warp 2: group 1, lower half. k = 11 is 3 of the second eight: thread 1 of the
  // group, a7, which is the high half of register 3. d as for bytes: thread 70, d7.
  frag_a[(64 + 4 + 1) * 4 + 3] = 0x40000000u;
  // N-major: k = 11 is row 3 of the second atom of 8 k; column 13 is the fifth half of the second 16
  // bytes, which go to 1 ^ 3.
  smem[kWgmmaSmemA + 1 * 1024 + 3 * 128 + 2 * 16 + 5 * 2] = std::byte{0x40};
  smem[kWgmmaSmemA + 1 * 1024 + 3 * 128 + 2 * 16 + 5 * 2 + 1] = std::byte{0x40};
  want[70 * 8 + 7] = 6;
  DeviceBuffer<std::byte> gmem_smem(smem);
  DeviceBuffer<uint32_t> gmem_a(frag_a);
  DeviceBuffer<float> gmem_c(zero), gmem_d(128 * 8);
  const SmemLayout layout{Swizzle::k128, true, 2048, 1024, 0};
  run<WgmmaKernel<WgmmaBf16<16, false, true>, true>>(
      {reinterpret_cast<const dev::U32x4*>(gmem_smem.data()), gmem_a.data(), gmem_c.data(),
       gmem_d.data(), layout, layout, 1, false},
      {{1, 1, 1}, kWgmmaSmemA + kWgmmaSmemB});
  CHECK(gmem_d.read() == want);
}

}  // namespace lamina::test
