// wgmma.m64nNk32 on bytes: every form, every swizzle, sums that wrap.
#pragma once

#include "wgmma_vectors.h"

namespace lamina::test {

#define LAMINA_WGMMA_OP(Name, function)                                          \
  template <int kN_>                                                             \
  struct Name {                                                                  \
    using Bits = uint8_t;                                                        \
    using Acc = int32_t;                                                         \
    static constexpr int kN = kN_;                                               \
    LAMINA_DEVICE static void apply(Acc (&d)[kN / 2], const auto& a, uint64_t b, \
                                    bool accumulate) {                           \
      dev::function<kN>(d, a, b, accumulate);                                    \
    }                                                                            \
  };
LAMINA_WGMMA_OP(WgmmaS8, wgmma_m64k32_s8)
LAMINA_WGMMA_OP(WgmmaU8, wgmma_m64k32_u8)
LAMINA_WGMMA_OP(WgmmaS8U8, wgmma_m64k32_s8u8)
LAMINA_WGMMA_OP(WgmmaU8S8, wgmma_m64k32_u8s8)
#undef LAMINA_WGMMA_OP

// All byte values, no two rows or columns alike.
template <class Op>
void fill_bytes(WgmmaCase<Op>& m) {
  for (size_t i = 0; i < m.a.size(); ++i)
    m.a[i] = static_cast<uint8_t>(i / m.k * 83 + i % m.k * 37 + i / m.k * (i % m.k) * 5 + 11);
  for (size_t i = 0; i < m.b.size(); ++i)
    m.b[i] = static_cast<uint8_t>(i % m.k * 59 + i / m.k * 101 + i % m.k * (i / m.k) * 7 + 29);
  for (size_t i = 0; i < m.c.size(); ++i)
    m.c[i] = static_cast<int32_t>(i / m.kN * 1000003 - i % m.kN * 70001);
}

template <class Op, class A, class B>
void check_wgmma_bytes(Swizzle swizzle, bool gap, bool accumulate) {
  const size_t k = swizzle == Swizzle::kNone ? 64 : size_t{16} << static_cast<int>(swizzle);
  WgmmaCase<Op> m{k, k_major(swizzle, gap, 64), k_major(swizzle, gap, Op::kN), accumulate};
  fill_bytes(m);
  const auto a = [](uint8_t bits) { return static_cast<A>(bits); };
  const auto b = [](uint8_t bits) { return static_cast<B>(bits); };
  m.template check<int32_t, false>(a, b);
  m.template check<int32_t, true>(a, b);
}

template <int kN>
void check_wgmma_layouts() {
  for (Swizzle swizzle : {Swizzle::kNone, Swizzle::k32, Swizzle::k64, Swizzle::k128})
    for (bool gap : {false, true})
      if (!gap || kN <= 96) check_wgmma_bytes<WgmmaS8<kN>, int8_t, int8_t>(swizzle, gap, !gap);
}

TEST(vector_wgmma_m64k32) {
  each_schedule([] {
    check_wgmma_layouts<8>();
    check_wgmma_layouts<24>();
    check_wgmma_layouts<64>();
  });
  check_wgmma_layouts<96>();
  check_wgmma_layouts<256>();
}

TEST(vector_wgmma_m64k32_signs) {
  each_schedule([] {
    check_wgmma_bytes<WgmmaU8<64>, uint8_t, uint8_t>(Swizzle::k128, false, true);
    check_wgmma_bytes<WgmmaS8U8<64>, int8_t, uint8_t>(Swizzle::k64, false, false);
    check_wgmma_bytes<WgmmaU8S8<64>, uint8_t, int8_t>(Swizzle::k32, false, true);
  });
}

// Eight products in flight together: four on one accumulator, and four on another with A in registers. The first
// wait is for the first four alone.
struct WgmmaInFlightKernel : BlockOf<128> {
  struct Args {
    const dev::U32x4* smem;
    const uint32_t* frag_a;  // [step][thread][4]
    const int32_t* c;        // [thread][32]
    int32_t *d, *e;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int thread = dev::thread_index();
    dev::U32x4* const smem = reinterpret_cast<dev::U32x4*>(dev::dynamic_smem());
    for (int i = thread; i < (kWgmmaSmemA + kWgmmaSmemB) / 16; i += kThreads)
      dev::store_shared(smem + i, dev::load_global(args.smem + i));
    dev::fence_proxy_async();
    dev::block_sync();
    const uint32_t at = dev::smem_address(smem);
    const uint64_t a = dev::matrix_descriptor(at, 16, 1024, Swizzle::k128);
    const uint64_t b = dev::matrix_descriptor(at + kWgmmaSmemA, 16, 1024, Swizzle::k128);
    int32_t d[32], e[32];
    uint32_t frag_a[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      for (int i = 0; i < 4; ++i)
        frag_a[step][i] = dev::load_global(args.frag_a + (step * kThreads + thread) * 4 + i);
      dev::wgmma_fence_registers(frag_a[step]);
    }
    for (int i = 0; i < 32; ++i) e[i] = dev::load_global(args.c + thread * 32 + i);
    dev::wgmma_fence_registers(d);
    dev::wgmma_fence_registers(e);
    dev::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      dev::wgmma_m64k32_s8<64>(d, advance_descriptor(a, 32 * step),
                               advance_descriptor(b, 32 * step), step > 0);
    dev::wgmma_commit();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      dev::wgmma_m64k32_s8<64>(e, frag_a[step], advance_descriptor(b, 32 * step), true);
    dev::wgmma_commit();
    dev::wgmma_wait<1>();
    dev::wgmma_fence_registers(d);
    for (int i = 0; i < 32; ++i) dev::store_global(args.d + thread * 32 + i, d[i]);
    dev::wgmma_wait<0>();
    dev::wgmma_fence_registers(e);
    for (int i = 0; i < 32; ++i) dev::store_global(args.e + thread * 32 + i, e[i]);
  }
};

TEST(vector_wgmma_in_flight_together) {
  each_schedule([] {
    WgmmaCase<WgmmaS8<64>> m{128, k_major(Swizzle::k128, false, 64),
                             k_major(Swizzle::k128, false, 64)};
    fill_bytes(m);
    DeviceBuffer<std::byte> gmem_smem(m.smem());
    DeviceBuffer<uint32_t> gmem_a(m.frag_a());
    DeviceBuffer<int32_t> gmem_c(m.frag_c()), gmem_d(64 * 64), gmem_e(64 * 64);
    run<WgmmaInFlightKernel>({reinterpret_cast<const dev::U32x4*>(gmem_smem.data()), gmem_a.data(),
                              gmem_c.data(), gmem_d.data(), gmem_e.data()},
                             {{1, 1, 1}, kWgmmaSmemA + kWgmmaSmemB});
    const auto value = [](uint8_t bits) { return static_cast<int8_t>(bits); };
    m.check_sums<int32_t>(m.matrix_d(gmem_d.read()), false, value, value);
    m.check_sums<int32_t>(m.matrix_d(gmem_e.read()), true, value, value);
  });
}

template <class Op, class A, class B>
void check_wgmma_extremes() {
  for (uint8_t byte_a : {uint8_t{0x80}, uint8_t{0xff}, uint8_t{0x7f}}) {
    WgmmaCase<Op> m{128, k_major(Swizzle::k128, false, 64), k_major(Swizzle::k128, false, 8)};
    std::fill(m.a.begin(), m.a.end(), byte_a);
    for (size_t i = 0; i < m.b.size(); ++i)
      m.b[i] = std::array<uint8_t, 8>{0x80, 0xff, 0x7f, 1, 0, 0x81, 0xfe, 2}[i / m.k];
    m.template check<int32_t, false>([](uint8_t bits) { return static_cast<A>(bits); },
                                     [](uint8_t bits) { return static_cast<B>(bits); });
  }
}

TEST(vector_wgmma_m64k32_extremes) {
  check_wgmma_extremes<WgmmaS8<8>, int8_t, int8_t>();
  check_wgmma_extremes<WgmmaU8<8>, uint8_t, uint8_t>();
  check_wgmma_extremes<WgmmaS8U8<8>, int8_t, uint8_t>();
  check_wgmma_extremes<WgmmaU8S8<8>, uint8_t, int8_t>();
  // Without .satfinite, sums wrap.
  WgmmaCase<WgmmaS8<8>> wrap{32, k_major(Swizzle::k32, false, 64), k_major(Swizzle::k32, false, 8)};
  wrap.a[37 * 32 + 7] = wrap.b[5 * 32 + 7] = wrap.a[63 * 32 + 30] = 1;
  wrap.b[2 * 32 + 30] = 0xff;
  wrap.c[37 * 8 + 5] = 0x7fffffff;
  wrap.c[63 * 8 + 2] = -0x7fffffff - 1;
  for (const std::vector<int32_t>& d : {wrap.multiply<false>(), wrap.multiply<true>()}) {
    CHECK_EQ(d[37 * 8 + 5], -0x7fffffff - 1);
    CHECK_EQ(d[63 * 8 + 2], 0x7fffffff);
    CHECK_EQ(d[63 * 8 + 3], 0);
  }
}

// One element in one place, followed by hand through the figures.
TEST(vector_wgmma_m64k32_single) {
  using Kernel = WgmmaKernel<WgmmaU8<16>, false>;
  const auto multiply = [](const std::vector<std::byte>& smem, const SmemLayout& layout) {
    std::vector<uint32_t> frag_a(128 * 4);
    std::vector<int32_t> zero(128 * 8);
    DeviceBuffer<std::byte> gmem_smem(smem);
    DeviceBuffer<uint32_t> gmem_a(frag_a);
    DeviceBuffer<int32_t> gmem_c(zero), gmem_d(128 * 8);
    run<Kernel>({reinterpret_cast<const dev::U32x4*>(gmem_smem.data()), gmem_a.data(),
                 gmem_c.data(), gmem_d.data(), layout, layout, 1, false},
                {{1, 1, 1}, kWgmmaSmemA + kWgmmaSmemB});
    return gmem_d.read();
  };
  // d[41][13]: 41 is row 9 of warp 2, so group 1 in the lower half; column 13 is 5 of the second eight,
  // so thread 2 of the group and the odd element: thread 64 + 4 + 2, d7.
  std::vector<int32_t> want(128 * 8);
  want[70 * 8 + 7] = 6;
  // k = 21 is byte 5 of the second 16 bytes. 128 B: row 41 is row 1 of the sixth atom, where column 1
  // goes to 1 ^ 1; column 13 is row 5 of the second, 1 ^ 5.
  std::vector<std::byte> smem(kWgmmaSmemA + kWgmmaSmemB);
  smem[5 * 1024 + 1 * 128 + 0 * 16 + 5] = std::byte{2};
  smem[kWgmmaSmemA + 1 * 1024 + 5 * 128 + 4 * 16 + 5] = std::byte{3};
  CHECK(multiply(smem, {Swizzle::k128, false, 16, 1024, 0}) == want);
  // 64 B: rows 0 and 1 share a line of 128 B, rows 4 and 5 are in the third.
  std::fill(smem.begin(), smem.end(), std::byte{0});
  smem[5 * 512 + 1 * 64 + 1 * 16 + 5] = std::byte{2};
  smem[kWgmmaSmemA + 1 * 512 + 5 * 64 + 3 * 16 + 5] = std::byte{3};
  CHECK(multiply(smem, {Swizzle::k64, false, 16, 512, 0}) == want);
  // 32 B: rows 0 to 3 share one, rows 4 to 7 the other.
  std::fill(smem.begin(), smem.end(), std::byte{0});
  smem[5 * 256 + 1 * 32 + 1 * 16 + 5] = std::byte{2};
  smem[kWgmmaSmemA + 1 * 256 + 5 * 32 + 0 * 16 + 5] = std::byte{3};
  CHECK(multiply(smem, {Swizzle::k32, false, 16, 256, 0}) == want);
  // Core matrices of 8 rows x 16 bytes.
  std::fill(smem.begin(), smem.end(), std::byte{0});
  smem[5 * 384 + 1 * 16 + 192 + 5] = std::byte{2};
  smem[kWgmmaSmemA + 1 * 384 + 5 * 16 + 192 + 5] = std::byte{3};
  CHECK(multiply(smem, {Swizzle::kNone, false, 192, 384, 0}) == want);
}

// The functions of layout/fragment.h that kernels use, for all four warps.
TEST(vector_wgmma_fragments) {
  const auto check = [](fragment::At at, const InThread& want, size_t thread, size_t element) {
    CHECK(at.row >= 0 && at.row < 64 && want.thread == thread && want.element == element);
  };
  for (size_t thread = 0; thread < 128; ++thread) {
    const int t = static_cast<int>(thread);
    for (int i = 0; i < 4; ++i) {
      for (int e = 0; e < 4; ++e) {
        const fragment::At at = fragment::wgmma_a<4>(t, i, e);
        check(at, frag_a_place(static_cast<size_t>(at.row), static_cast<size_t>(at.column), 4),
              thread, static_cast<size_t>(4 * i + e));
      }
      for (int e = 0; e < 2; ++e) {
        const fragment::At at = fragment::wgmma_a<2>(t, i, e);
        check(at, frag_a_place(static_cast<size_t>(at.row), static_cast<size_t>(at.column), 2),
              thread, static_cast<size_t>(2 * i + e));
      }
    }
    for (int i = 0; i < 128; ++i) {
      const fragment::At at = fragment::wgmma_d(t, i);
      check(at, frag_d_place(static_cast<size_t>(at.row), static_cast<size_t>(at.column)), thread,
            static_cast<size_t>(i));
    }
  }
}

// Bits 0-13 address, 16-29 leading, 32-45 stride, each without its low four bits; 62-63 the swizzle.
TEST(vector_wgmma_descriptor) {
  const auto bits = [](uint32_t address, int leading, int stride, Swizzle swizzle) {
    return MatrixDescriptor{address, leading, stride, swizzle, 0}.encode();
  };
  CHECK_EQ(bits(0x400, 16, 1024, Swizzle::k128), 0x4000004000010040u);
  CHECK_EQ(bits(0x3fff0, 0x80, 0x200, Swizzle::k64), 0x8000002000083fffu);
  CHECK_EQ(bits(0x12340, 0x3fff0, 0x100, Swizzle::k32), 0xc00000103fff1234u);
  CHECK_EQ(bits(0, 0, 0x3fff0, Swizzle::kNone), 0x00003fff00000000u);
}

}  // namespace lamina::test
