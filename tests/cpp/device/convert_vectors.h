// PTX ISA, "lop3", "prmt", "dp4a".
#pragma once

#include <utility>

#include "buffer.h"

namespace lamina::test {

// Evaluates every table on every thread's a, b and c.
struct Lop3Kernel : BlockOf<4> {
  struct Args {
    const uint32_t* abc;  // [thread][3]
    uint32_t* d;          // [thread][256]
  };
  template <uint32_t... kTables>
  LAMINA_DEVICE static void all_tables(uint32_t* d, uint32_t a, uint32_t b, uint32_t c,
                                       std::integer_sequence<uint32_t, kTables...>) {
    (dev::store_global(d + kTables, dev::lop3<kTables>(a, b, c)), ...);
  }
  LAMINA_DEVICE static void run(const Args& args) {
    const int thread = dev::thread_index();
    const uint32_t* const abc = args.abc + 3 * thread;
    all_tables(args.d + 256 * thread, dev::load_global(abc), dev::load_global(abc + 1),
               dev::load_global(abc + 2), std::make_integer_sequence<uint32_t, 256>{});
  }
};

TEST(vector_lop3) {
  // "ta = 0xF0; tb = 0xCC; tc = 0xAA; immLut = F(ta, tb, tc)": with these operands the result is the table itself.
  const std::vector<uint32_t> abc = {0xf0f0f0f0u, 0xccccccccu, 0xaaaaaaaau, 0x0000ffffu,
                                     0x00ff00ffu, 0x3c5a9669u, 0x01234567u, 0xfedcba98u,
                                     0x6b43a9b5u, 0x80000001u, 0x00000000u, 0xffffffffu};
  DeviceBuffer<uint32_t> gmem_abc(abc), gmem_d(4 * 256);
  run<Lop3Kernel>({gmem_abc.data(), gmem_d.data()});
  const std::vector<uint32_t> d = gmem_d.read();
  for (size_t table = 0; table < 256; ++table) CHECK_EQ(d[table], table * 0x01010101u);
  for (size_t thread = 0; thread < 4; ++thread) {
    at("operands ", thread);
    const uint32_t a = abc[3 * thread], b = abc[3 * thread + 1], c = abc[3 * thread + 2];
    const uint32_t* const of = d.data() + 256 * thread;
    // The examples of the text, then the tables that kernels use.
    CHECK_EQ(of[0x80], a & b & c);
    CHECK_EQ(of[0xfe], a | b | c);
    CHECK_EQ(of[0x40], a & b & ~c);
    CHECK_EQ(of[0xea], (a & b) | c);
    CHECK_EQ(of[0x6a], (a & b) ^ c);
    CHECK_EQ(of[0x96], a ^ b ^ c);
    CHECK_EQ(of[0xd8], (a & ~c) | (b & c));
    CHECK_EQ(of[0x0f], ~a);
  }
}

struct PrmtKernel : OneWarp {
  struct Args {
    uint32_t a, b;
    const uint32_t* selectors;
    uint32_t* d;
    int count;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    for (int i = dev::lane(); i < args.count; i += kThreads)
      dev::store_global(args.d + i,
                        dev::prmt(args.a, args.b, dev::load_global(args.selectors + i)));
  }
};

TEST(vector_prmt) {
  // {b, a} = {{b7, b6, b5, b4}, {b3, b2, b1, b0}} = 04 f5 a6 17  83 72 e1 90.
  const uint32_t a = 0x8372e190u, b = 0x04f5a617u;
  const std::vector<std::pair<uint32_t, uint32_t>> cases = {
      {0x3210u, a},
      {0x7654u, b},
      {0x0123u, 0x90e17283u},
      {0x5410u, 0xa617e190u},
      {0x7632u, 0x04f58372u},
      {0x4444u, 0x17171717u},
      {0x6420u, 0xf5177290u},
      {0x7531u, 0x04a683e1u},
      // msb of a nibble: the byte's sign, replicated.
      {0xba98u, 0xff00ffffu},
      {0xfedcu, 0x00ffff00u},
      {0x9180u, 0xffe1ff90u},  // bytes 0 and 1 widened to 16 bits
      {0xd5a2u, 0xffa60072u},
      // "a 16b permute code": the higher bits do not count.
      {0xabcd3210u, a},
  };
  std::vector<uint32_t> selectors;
  for (const auto& [selector, want] : cases) selectors.push_back(selector);
  DeviceBuffer<uint32_t> gmem_selectors(selectors), gmem_d(cases.size());
  run<PrmtKernel>({a, b, gmem_selectors.data(), gmem_d.data(), static_cast<int>(cases.size())});
  const std::vector<uint32_t> d = gmem_d.read();
  for (size_t i = 0; i < cases.size(); ++i) {
    at("selector case ", i);
    CHECK_EQ(d[i], cases[i].second);
  }
}

struct Dot4Case {
  uint32_t a, b;
  int32_t c, want;
};

struct Dot4Kernel : OneWarp {
  struct Args {
    const uint32_t* ab;  // [case][2]
    const int32_t* c;
    int32_t* d;
    int count;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    for (int i = dev::lane(); i < args.count; i += kThreads)
      dev::store_global(args.d + i, dev::dot4_s8(dev::load_global(args.ab + 2 * i),
                                                 dev::load_global(args.ab + 2 * i + 1),
                                                 dev::load_global(args.c + i)));
  }
};

TEST(vector_dot4_s8) {
  const std::vector<Dot4Case> cases = {
      {0x807ffe01u, 0x80800503u, 1000, 1121},  // 1 3 + -2 5 + 127 -128 + -128 -128 = 121
      {0x000000ffu, 0x00000064u, 0, -100},
      {0x0000ff00u, 0x00006300u, 1, -98},
      {0x00ff0000u, 0x00620000u, 2, -96},
      {0xff000000u, 0x61000000u, 3, -94},
      {0x01000000u, 0x00010203u, 5, 5},  // each byte meets only the byte in the same position
      {0x80808080u, 0x80808080u, 0, 65536},
      {0x00000001u, 0x00000001u, 0x7fffffff, -0x7fffffff - 1},  // 32 bits, no saturation
  };
  std::vector<uint32_t> ab;
  std::vector<int32_t> c;
  for (const Dot4Case& one : cases) {
    ab.push_back(one.a);
    ab.push_back(one.b);
    c.push_back(one.c);
  }
  DeviceBuffer<uint32_t> gmem_ab(ab);
  DeviceBuffer<int32_t> gmem_c(c), gmem_d(cases.size());
  run<Dot4Kernel>({gmem_ab.data(), gmem_c.data(), gmem_d.data(), static_cast<int>(cases.size())});
  const std::vector<int32_t> d = gmem_d.read();
  for (size_t i = 0; i < cases.size(); ++i) {
    at("case ", i);
    CHECK_EQ(d[i], cases[i].want);
  }
}

}  // namespace lamina::test
