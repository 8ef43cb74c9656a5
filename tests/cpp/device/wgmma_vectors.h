// PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions": figures "WGMMA
// .m64nNk16 / .m64nNk32 register fragment layout for matrix A" and "... accumulator matrix D", "Shared
// Memory Matrix Layout", "Strides", "Matrix Descriptor Format".
#pragma once

#include "base/numeric.h"
#include "buffer.h"
#include "layout/fragment.h"

namespace lamina::test {

// The layout of a matrix in the test; `stride` and `leading` are the byte offsets of the text.
struct SmemLayout {
  Swizzle swizzle = Swizzle::kNone;
  bool is_mn_major = false;
  int leading = 0, stride = 0;
  int step = 0;  // bytes from the operand of one instruction to the next

  int span() const { return 16 << static_cast<int>(swizzle); }

  // The place of element k of a row of A or a column of B. In 128-bit elements, a swizzle atom is 8 rows
  // of span / 16 (K-major) or the transpose (MN-major). Inside an atom, 16-byte columns are permuted by the
  // number of the 128-byte line: 8 lines of 128 B, 4 lines of two 64 B rows, 2 lines of four 32 B rows.
  size_t place(int row, int k, int element_bytes) const {
    const int along = (is_mn_major ? row : k) * element_bytes, line = is_mn_major ? k : row;
    const int inside = line % 8 * span();
    if (swizzle == Swizzle::kNone) {
      const int chunk = along / 16, group = line / 8;
      const int chunks = is_mn_major ? stride : leading, groups = is_mn_major ? leading : stride;
      return static_cast<size_t>(chunk * chunks + group * groups + inside + along % 16);
    }
    const int column = along % span() / 16 ^ inside / 128;
    return static_cast<size_t>(along / span() * leading + line / 8 * stride + inside + column * 16 +
                               along % 16);
  }
};

// The inverse of the figures: the thread and its element, counted from the low end of register 0, that hold (row,
// column) of A, with `per` elements a register, and of D.
struct InThread {
  size_t thread, element;
};
inline InThread frag_a_place(size_t row, size_t k, size_t per) {
  return {row / 16 * 32 + row % 8 * 4 + k % (4 * per) / per,
          k / (4 * per) * 2 * per + row % 16 / 8 * per + k % per};
}
inline InThread frag_d_place(size_t row, size_t column) {
  return {row / 16 * 32 + row % 8 * 4 + column % 8 / 2,
          column / 8 * 4 + row % 16 / 8 * 2 + column % 2};
}

constexpr int kWgmmaSmemA = 16 * 1024;  // bytes of A, before B
constexpr int kWgmmaSmemB = 64 * 1024;

template <class Op, bool kFromRegisters>
struct WgmmaKernel : BlockOf<128> {
  using Acc = typename Op::Acc;
  struct Args {
    const dev::U32x4* smem;  // A's and B's bytes
    const uint32_t* frag_a;  // [step][thread][4]
    const Acc* c;            // [thread][n / 2]
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
      if constexpr (kFromRegisters)
        for (int i = 0; i < 4; ++i)
          frag_a[i] = dev::load_global(args.frag_a + (step * kThreads + thread) * 4 + i);
      dev::wgmma_fence_registers(d);
      dev::wgmma_fence();
      if constexpr (kFromRegisters) {
        dev::wgmma_fence_registers(frag_a);
        Op::apply(d, frag_a, b, args.accumulate || step > 0);
      } else {
        Op::apply(d, a, b, args.accumulate || step > 0);
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

// Matrices as stored bits, [row][k] of A and [column][k] of B.
template <class Op>
struct WgmmaCase {
  using Bits = typename Op::Bits;
  using Acc = typename Op::Acc;
  static constexpr size_t kN = Op::kN, kPer = 4 / sizeof(Bits), kStepK = 8 * kPer;

  size_t k;
  SmemLayout layout_a, layout_b;
  bool accumulate = true;
  std::vector<Bits> a = std::vector<Bits>(64 * k), b = std::vector<Bits>(kN * k);
  std::vector<Acc> c = std::vector<Acc>(64 * kN);

  std::vector<std::byte> smem() const {
    std::vector<std::byte> bytes(kWgmmaSmemA + kWgmmaSmemB);
    const auto put = [&](size_t base, const SmemLayout& layout, const std::vector<Bits>& matrix) {
      for (size_t i = 0; i < matrix.size(); ++i)
        std::memcpy(bytes.data() + base +
                        layout.place(static_cast<int>(i / k), static_cast<int>(i % k),
                                     static_cast<int>(sizeof(Bits))),
                    &matrix[i], sizeof(Bits));
    };
    put(0, layout_a, a);
    put(kWgmmaSmemA, layout_b, b);
    return bytes;
  }
  std::vector<uint32_t> frag_a() const {
    std::vector<uint32_t> registers(k / kStepK * 128 * 4);
    for (size_t i = 0; i < a.size(); ++i) {
      const size_t step = i % k / kStepK;
      const InThread at = frag_a_place(i / k, i % k % kStepK, kPer);
      registers[(step * 128 + at.thread) * 4 + at.element / kPer] |=
          static_cast<uint32_t>(a[i]) << (32 / kPer * (at.element % kPer));
    }
    return registers;
  }
  // [thread][n / 2] of a matrix [64][n], and back.
  static size_t in_fragment(size_t i) {
    const InThread at = frag_d_place(i / kN, i % kN);
    return at.thread * (kN / 2) + at.element;
  }
  std::vector<Acc> frag_c() const {
    std::vector<Acc> registers(64 * kN);
    for (size_t i = 0; i < 64 * kN; ++i) registers[in_fragment(i)] = c[i];
    return registers;
  }
  static std::vector<Acc> matrix_d(const std::vector<Acc>& registers) {
    std::vector<Acc> d(64 * kN);
    for (size_t i = 0; i < 64 * kN; ++i) d[i] = registers[in_fragment(i)];
    return d;
  }

  template <bool kFromRegisters>
  std::vector<Acc> multiply() const {
    DeviceBuffer<std::byte> gmem_smem(smem());
    DeviceBuffer<uint32_t> gmem_a(frag_a());
    DeviceBuffer<Acc> gmem_c(frag_c()), gmem_d(64 * kN);
    run<WgmmaKernel<Op, kFromRegisters>>(
        {reinterpret_cast<const dev::U32x4*>(gmem_smem.data()), gmem_a.data(), gmem_c.data(),
         gmem_d.data(), layout_a, layout_b, static_cast<int>(k / kStepK), accumulate},
        {{1, 1, 1}, kWgmmaSmemA + kWgmmaSmemB});
    return matrix_d(gmem_d.read());
  }

  // Against exact sums; value_a and value_b read the stored bits, Wide holds every sum.
  template <class Wide>
  void check_sums(const std::vector<Acc>& d, bool with_c, const auto& value_a,
                  const auto& value_b) const {
    int wrong = 0;
    for (size_t row = 0; row < 64; ++row)
      for (size_t column = 0; column < kN; ++column) {
        Wide sum = with_c ? static_cast<Wide>(c[row * kN + column]) : Wide{0};
        for (size_t p = 0; p < k; ++p)
          sum += static_cast<Wide>(value_a(a[row * k + p])) *
                 static_cast<Wide>(value_b(b[column * k + p]));
        wrong += d[row * kN + column] != static_cast<Acc>(sum);
      }
    at("n ", kN, " k ", k, " swizzle a ", layout_a.span(), " b ", layout_b.span(), " mn-major ",
       layout_a.is_mn_major, layout_b.is_mn_major);
    CHECK_EQ(wrong, 0);
  }
  template <class Wide, bool kFromRegisters>
  void check(const auto& value_a, const auto& value_b) const {
    check_sums<Wide>(multiply<kFromRegisters>(), accumulate, value_a, value_b);
  }
};

// Layouts of `rows` x one span of k, or of two instructions without a swizzle. `gap` leaves room between atoms, which
// a wrong offset would read.
inline SmemLayout k_major(Swizzle swizzle, bool gap, int rows) {
  SmemLayout layout{swizzle, false, 16, 0, 32};
  if (swizzle == Swizzle::kNone) {
    layout.leading =
        gap ? 128 : 16 * rows;  // four columns of k inside a group of 8 rows; or outside
    layout.stride = gap ? 512 : 128;
    layout.step = 2 * layout.leading;
  } else {
    layout.stride = 8 * layout.span() * (gap ? 2 : 1);
  }
  return layout;
}
inline SmemLayout mn_major(Swizzle swizzle, bool gap, int rows, int k) {
  SmemLayout layout{swizzle, true, 0, 0, 0};
  const int atom = 8 * layout.span(), groups = k / 8,
            lines = (2 * rows + layout.span() - 1) / layout.span();
  // All k of a run of rows together; or all rows of 8 k.
  const int next_k = gap ? lines * atom : atom, next_rows = gap ? atom : groups * atom;
  const bool is_plain = swizzle == Swizzle::kNone;
  layout.leading = is_plain ? next_k : next_rows;
  layout.stride = is_plain ? next_rows : next_k;
  layout.step = 2 * next_k;
  return layout;
}

}  // namespace lamina::test
