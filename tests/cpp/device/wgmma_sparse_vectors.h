// wgmma.mma_async.sp: a in shared memory and in registers, every swizzle. a holds half of the k of b.
#pragma once

#include "device/sparse.h"
#include "sparse_vectors.h"
#include "wgmma_vectors.h"

namespace lamina::test {

#define LAMINA_WGMMA_OP(Name, Element, Acc_, ...)                                \
  template <int kN_, int kSelector_>                                             \
  struct Name {                                                                  \
    using Bits = Element;                                                        \
    using Acc = Acc_;                                                            \
    static constexpr int kN = kN_;                                               \
    static constexpr size_t kSelector = kSelector_;                              \
    LAMINA_DEVICE static void apply(Acc (&d)[kN / 2], const auto& a, uint64_t b, \
                                    const uint32_t& metadata, bool accumulate) { \
      dev::__VA_ARGS__(d, a, b, metadata, accumulate);                           \
    }                                                                            \
  };
LAMINA_WGMMA_OP(WgmmaSparseS8, uint8_t, int32_t, wgmma_sparse_m64k64_s8<kN>)
LAMINA_WGMMA_OP(WgmmaSparseF16, uint16_t, float, wgmma_sparse_m64k32_f16<kN, kSelector_>)
LAMINA_WGMMA_OP(WgmmaSparseBf16, uint16_t, float, wgmma_sparse_m64k32_bf16<kN, kSelector_>)
#undef LAMINA_WGMMA_OP

// Registers of a step: a and the metadata, [step][thread][4] and [step][thread].
template <class Op, bool kFromRegisters>
struct WgmmaSparseKernel : BlockOf<128> {
  using Acc = typename Op::Acc;
  struct Args {
    const dev::U32x4* smem;  // A's and B's bytes
    const uint32_t *frag_a, *metadata;
    const Acc* c;  // [thread][n / 2]
    Acc* d;
    SmemLayout a, b;
    int steps;
    bool accumulate;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    constexpr int kCount = Op::kN / 2;
    const int thread = dev::thread_index();
    dev::U32x4* const smem = reinterpret_cast<dev::U32x4*>(dev::dynamic_smem());
    for (int i = thread; i < (kWgmmaSmemA + kWgmmaSmemB) / 16; i += kThreads)
      dev::store_shared(smem + i, dev::load_global(args.smem + i));
    dev::fence_proxy_async();
    dev::block_sync();
    const uint32_t at = dev::smem_address(smem);
    uint64_t a = dev::matrix_descriptor(at, args.a.leading, args.a.stride, args.a.swizzle);
    uint64_t b =
        dev::matrix_descriptor(at + kWgmmaSmemA, args.b.leading, args.b.stride, args.b.swizzle);
    Acc d[kCount];
    for (int i = 0; i < kCount; ++i) d[i] = dev::load_global(args.c + thread * kCount + i);
    for (int step = 0; step < args.steps; ++step) {
      uint32_t frag_a[4];
      const uint32_t metadata = dev::load_global(args.metadata + step * kThreads + thread);
      if constexpr (kFromRegisters)
        for (int i = 0; i < 4; ++i)
          frag_a[i] = dev::load_global(args.frag_a + (step * kThreads + thread) * 4 + i);
      dev::wgmma_fence_registers(d);
      dev::wgmma_fence();
      if constexpr (kFromRegisters) {
        dev::wgmma_fence_registers(frag_a);
        Op::apply(d, frag_a, b, metadata, args.accumulate || step > 0);
      } else {
        Op::apply(d, a, b, metadata, args.accumulate || step > 0);
      }
      dev::wgmma_commit();
      dev::wgmma_wait<0>();
      dev::wgmma_fence_registers(d);
      a = advance_descriptor(a, args.a.step);
      b = advance_descriptor(b, args.b.step);
    }
    for (int i = 0; i < kCount; ++i) dev::store_global(args.d + thread * kCount + i, d[i]);
  }
};

// Matrices as stored bits: the kept elements [row][k / 2] of A, and B [column][k].
template <class Op>
struct WgmmaSparseCase {
  using Bits = typename Op::Bits;
  using Acc = typename Op::Acc;
  static constexpr size_t kN = Op::kN, kPer = 4 / sizeof(Bits), kStepK = 16 * kPer;

  size_t k;
  SmemLayout layout_a, layout_b;
  bool accumulate;
  std::vector<Bits> a = std::vector<Bits>(64 * k / 2), b = std::vector<Bits>(kN * k);
  std::vector<Acc> c = std::vector<Acc>(64 * kN);

  std::vector<std::byte> smem() const {
    std::vector<std::byte> bytes(kWgmmaSmemA + kWgmmaSmemB);
    const auto put = [&](size_t base, const SmemLayout& layout, const std::vector<Bits>& matrix,
                         size_t columns) {
      for (size_t i = 0; i < matrix.size(); ++i)
        std::memcpy(bytes.data() + base +
                        layout.place(static_cast<int>(i / columns), static_cast<int>(i % columns),
                                     static_cast<int>(sizeof(Bits))),
                    &matrix[i], sizeof(Bits));
    };
    put(0, layout_a, a, k / 2);
    put(kWgmmaSmemA, layout_b, b, k);
    return bytes;
  }

  template <bool kFromRegisters>
  std::vector<Acc> multiply() const {
    const size_t steps = k / kStepK, kept_in_step = kStepK / 2;
    std::vector<uint32_t> frag_a(steps * 128 * 4), metadata(steps * 128);
    for (size_t i = 0; i < a.size(); ++i) {
      const size_t p = i % (k / 2), step = p / kept_in_step;
      const InThread at = frag_a_place(i / (k / 2), p % kept_in_step, kPer);
      frag_a[(step * 128 + at.thread) * 4 + at.element / kPer] |=
          static_cast<uint32_t>(a[i]) << (32 / kPer * (at.element % kPer));
    }
    // Each warp has the metadata of its 16 rows. All steps have the same.
    for (size_t i = 0; i < metadata.size(); ++i)
      metadata[i] = warp_metadata(kPer == 4, Op::kSelector, i % 128 / 32 * 16)[i % 32];
    const auto in_fragment = [](size_t i) {
      const InThread at = frag_d_place(i / kN, i % kN);
      return at.thread * (kN / 2) + at.element;
    };
    std::vector<Acc> frag_c(64 * kN);
    for (size_t i = 0; i < 64 * kN; ++i) frag_c[in_fragment(i)] = c[i];
    DeviceBuffer<std::byte> gmem_smem(smem());
    DeviceBuffer<uint32_t> gmem_a(frag_a), gmem_metadata(metadata);
    DeviceBuffer<Acc> gmem_c(frag_c), gmem_d(64 * kN);
    run<WgmmaSparseKernel<Op, kFromRegisters>>(
        {reinterpret_cast<const dev::U32x4*>(gmem_smem.data()), gmem_a.data(), gmem_metadata.data(),
         gmem_c.data(), gmem_d.data(), layout_a, layout_b, static_cast<int>(steps), accumulate},
        {{1, 1, 1}, kWgmmaSmemA + kWgmmaSmemB});
    const std::vector<Acc> registers = gmem_d.read();
    std::vector<Acc> d(64 * kN);
    for (size_t i = 0; i < 64 * kN; ++i) d[i] = registers[in_fragment(i)];
    return d;
  }

  // Against exact sums; value reads the stored bits, Wide holds every sum.
  template <class Wide, bool kFromRegisters>
  void check(const auto& value) const {
    const std::vector<Acc> d = multiply<kFromRegisters>();
    int wrong = 0;
    for (size_t row = 0; row < 64; ++row)
      for (size_t column = 0; column < kN; ++column) {
        Wide sum = accumulate ? static_cast<Wide>(c[row * kN + column]) : Wide{0};
        for (size_t p = 0; p < k / 2; ++p) {
          const size_t begin = p / (kStepK / 2) * kStepK;
          sum +=
              static_cast<Wide>(value(a[row * (k / 2) + p])) *
              static_cast<Wide>(value(b[column * k + begin + kept_column(row, p % (kStepK / 2))]));
        }
        wrong += d[row * kN + column] != static_cast<Acc>(sum);
      }
    at("n ", kN, " k ", k, " swizzle a ", layout_a.span(), " b ", layout_b.span());
    CHECK_EQ(wrong, 0);
  }
};

// The same as k_major, for an operand b of which an instruction takes 64 bytes of each column.
inline SmemLayout k_major_sparse(Swizzle swizzle, bool gap, int columns) {
  SmemLayout layout = k_major(swizzle, gap, columns);
  layout.step *= 2;
  return layout;
}

// k: one step or, where the spans of the swizzles allow it, two.
template <class Op>
WgmmaSparseCase<Op> sparse_case(Swizzle swizzle_a, Swizzle swizzle_b, bool gap) {
  using Case = WgmmaSparseCase<Op>;
  const bool is_narrow = swizzle_a == Swizzle::k32 || swizzle_b == Swizzle::k64 ||
                         (swizzle_b == Swizzle::kNone && gap);
  return {is_narrow ? Case::kStepK : 2 * Case::kStepK, k_major(swizzle_a, gap, 64),
          k_major_sparse(swizzle_b, gap, Op::kN), gap};
}

template <class Check>
void each_sparse_layout(const Check& check) {
  for (bool gap : {false, true}) {
    check(Swizzle::kNone, Swizzle::kNone, gap);
    check(Swizzle::k32, Swizzle::k128, gap);
    check(Swizzle::k64, Swizzle::k128, gap);
    check(Swizzle::k128, Swizzle::k64, gap);
  }
}

template <int kN>
void check_wgmma_sparse_bytes() {
  each_sparse_layout([](Swizzle swizzle_a, Swizzle swizzle_b, bool gap) {
    if (gap && kN > 96) return;
    auto m = sparse_case<WgmmaSparseS8<kN, 0>>(swizzle_a, swizzle_b, gap);
    for (size_t i = 0; i < m.a.size(); ++i)
      m.a[i] = static_cast<uint8_t>(i / (m.k / 2) * 83 + i % (m.k / 2) * 37 + i * i % 251 + 11);
    for (size_t i = 0; i < m.b.size(); ++i)
      m.b[i] = static_cast<uint8_t>(i % m.k * 59 + i / m.k * 101 + i % m.k * (i / m.k) * 7 + 29);
    for (size_t i = 0; i < m.c.size(); ++i)
      m.c[i] = static_cast<int32_t>(i / m.kN * 1000003 - i % m.kN * 70001);
    const auto value = [](uint8_t bits) { return static_cast<int8_t>(bits); };
    m.template check<int32_t, false>(value);
    m.template check<int32_t, true>(value);
  });
}

TEST(vector_wgmma_sparse_m64k64) {
  each_schedule([] {
    check_wgmma_sparse_bytes<8>();
    check_wgmma_sparse_bytes<24>();
    check_wgmma_sparse_bytes<64>();
  });
  check_wgmma_sparse_bytes<256>();
}

// Multiples of 1/32 below 2^12: every sum is exact, in any order.
template <class Half, class Op>
void check_wgmma_sparse_halves() {
  each_sparse_layout([](Swizzle swizzle_a, Swizzle swizzle_b, bool gap) {
    if (gap && Op::kN > 96) return;
    auto m = sparse_case<Op>(swizzle_a, swizzle_b, gap);
    for (size_t i = 0; i < m.a.size(); ++i) {
      const size_t row = i / (m.k / 2), p = i % (m.k / 2);
      const int value = static_cast<int>((row * 5 + p * 3 + row * p) % 61) - 30;
      m.a[i] = from_f32<Half>(static_cast<float>(value) / 8).bits;
    }
    for (size_t i = 0; i < m.b.size(); ++i) {
      const size_t column = i / m.k, p = i % m.k;
      const int value = static_cast<int>((p * 7 + column * 11 + p * column * 3) % 53) - 26;
      m.b[i] = from_f32<Half>(static_cast<float>(value) / 4).bits;
    }
    for (size_t i = 0; i < m.c.size(); ++i)
      m.c[i] =
          static_cast<float>(static_cast<int>(i / m.kN * 100) - static_cast<int>(i % m.kN)) / 32;
    const auto value = [](uint16_t bits) { return to_f32(Half{bits}); };
    m.template check<double, false>(value);
    m.template check<double, true>(value);
  });
}

TEST(vector_wgmma_sparse_m64k32) {
  each_schedule([] {
    check_wgmma_sparse_halves<F16, WgmmaSparseF16<8, 0>>();
    check_wgmma_sparse_halves<F16, WgmmaSparseF16<40, 1>>();
    check_wgmma_sparse_halves<BF16, WgmmaSparseBf16<64, 0>>();
  });
  check_wgmma_sparse_halves<BF16, WgmmaSparseBf16<256, 1>>();
}

// One element in one place, followed by hand through the text.
TEST(vector_wgmma_sparse_m64k64_single) {
  // a[41][...]: row 41 is row 9 of warp 2, group 1, lower half. Lane 6's register 3, byte 2 as in mma.sp: a[41][53], if
  // nibble 5 of thread 3 of the group keeps elements 1 and 3.
  std::vector<uint32_t> frag_a(128 * 4), metadata(128, 0x44444444u);
  frag_a[(64 + 6) * 4 + 3] = 5u << 16;
  metadata[64 + 7] = 0x44d44444u;
  // b[53][13], 64 B swizzle: column 13 is row 5 of the second atom, 64 bytes into its third line of 128; byte 53 is byte 5
  // of 16-byte column 3, which goes to 3 ^ 2.
  std::vector<std::byte> smem(kWgmmaSmemA + kWgmmaSmemB);
  smem[kWgmmaSmemA + 1 * 512 + 5 * 64 + 1 * 16 + 5] = std::byte{7};
  // d[41][13]: group 1, thread 2, d7.
  std::vector<int32_t> zero(128 * 8), want(128 * 8);
  want[(64 + 6) * 8 + 7] = 35;
  DeviceBuffer<std::byte> gmem_smem(smem);
  DeviceBuffer<uint32_t> gmem_a(frag_a), gmem_metadata(metadata);
  DeviceBuffer<int32_t> gmem_c(zero), gmem_d(128 * 8);
  const SmemLayout layout{Swizzle::k64, false, 16, 512, 0};
  run<WgmmaSparseKernel<WgmmaSparseS8<16, 0>, true>>(
      {reinterpret_cast<const dev::U32x4*>(gmem_smem.data()), gmem_a.data(), gmem_metadata.data(),
       gmem_c.data(), gmem_d.data(), layout, layout, 1, false},
      {{1, 1, 1}, kWgmmaSmemA + kWgmmaSmemB});
  CHECK(gmem_d.read() == want);
}

}  // namespace lamina::test
