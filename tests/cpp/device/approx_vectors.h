// PTX ISA, "cvt" of two .f32 to .f16x2 and .bf16x2, "max", "ex2" and "lg2" with .approx.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "buffer.h"

namespace lamina::test {

template <class Op>
struct OnPairsKernel : OneWarp {
  struct Args {
    const float* in;  // [case][2]
    uint32_t* out;
    int count;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    for (int i = dev::lane(); i < args.count; i += kThreads)
      dev::store_global(args.out + i, Op::apply(dev::load_global(args.in + 2 * i),
                                                dev::load_global(args.in + 2 * i + 1)));
  }
};

template <class Op>
std::vector<uint32_t> apply_to_pairs(const std::vector<float>& in) {
  DeviceBuffer<float> gmem_in(in);
  DeviceBuffer<uint32_t> gmem_out(in.size() / 2);
  run<OnPairsKernel<Op>>({gmem_in.data(), gmem_out.data(), static_cast<int>(in.size() / 2)});
  return gmem_out.read();
}

struct PackF16 {
  LAMINA_DEVICE static uint32_t apply(float low, float high) {
    return dev::f32_to_f16x2(low, high);
  }
};
struct PackBf16 {
  LAMINA_DEVICE static uint32_t apply(float low, float high) {
    return dev::f32_to_bf16x2(low, high);
  }
};
struct Max {
  LAMINA_DEVICE static uint32_t apply(float a, float b) {
    return std::bit_cast<uint32_t>(dev::f32_max(a, b));
  }
};
struct Exp2 {
  LAMINA_DEVICE static uint32_t apply(float a, float) {
    return std::bit_cast<uint32_t>(dev::exp2_approx(a));
  }
};
struct Log2 {
  LAMINA_DEVICE static uint32_t apply(float a, float) {
    return std::bit_cast<uint32_t>(dev::log2_approx(a));
  }
};

// "For .f16x2 and .bf16x2 the value converted from a is stored in the upper half of d, that from b in the lower half."
TEST(vector_pack_halves) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<float> in = {1.0f,     -2.0f,    0.5f,      -0.0f,      65504.0f,   65520.0f,
                                 0x1p-24f, 0x1p-25f, kInfinity, -kInfinity, 0x1.002p0f, 0x1.006p0f};
  CHECK(apply_to_pairs<PackF16>(in) ==
        (std::vector<uint32_t>{0xc0003c00u, 0x80003800u, 0x7c007bffu, 0x00000001u, 0xfc007c00u,
                               0x3c023c00u}));
  const std::vector<float> wide = {1.0f,      -2.0f,     0x1.01p0f,   0x1.03p0f,
                                   0x1p-133f, 0x1p-134f, 0x1.fep127f, 0x1.ffp127f};
  CHECK(apply_to_pairs<PackBf16>(wide) ==
        (std::vector<uint32_t>{0xc0003f80u, 0x3f823f80u, 0x00000001u, 0x7f807f7fu}));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK_EQ(apply_to_pairs<PackF16>({nan, 1.0f})[0] & 0xffff7c00u, 0x3c007c00u);
  CHECK_EQ(apply_to_pairs<PackBf16>({1.0f, nan})[0] & 0x7f80ffffu, 0x7f803f80u);
}

// "If one of the inputs is NaN, the result is the other input; if both are, the canonical NaN."
TEST(vector_max) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<uint32_t> out = apply_to_pairs<Max>(
      {1.0f, 2.0f, 2.0f, 1.0f, -1.0f, -2.0f, nan, -3.0f, -3.0f, nan, -kInfinity, nan, nan, nan});
  const std::vector<float> want = {2.0f, 2.0f, -1.0f, -3.0f, -3.0f, -kInfinity};
  for (size_t i = 0; i < want.size(); ++i) CHECK_EQ(out[i], std::bit_cast<uint32_t>(want[i]));
  CHECK(std::isnan(std::bit_cast<float>(out[6])));
}

// The tables of special values, and the stated errors.
TEST(vector_exp2) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> in = {-kInfinity, 0.0f, 0.0f, 0.0f, -0.0f, 0.0f, kInfinity, 0.0f};
  CHECK(apply_to_pairs<Exp2>(in) ==
        (std::vector<uint32_t>{0u, 0x3f800000u, 0x3f800000u, 0x7f800000u}));
  in = {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  CHECK(std::isnan(std::bit_cast<float>(apply_to_pairs<Exp2>(in)[0])));
  in = {-127.0f, 0.0f, -200.0f, 0.0f, 0x1p-140f, 0.0f};  // subnormal results and operands
  CHECK(apply_to_pairs<Exp2>(in) == (std::vector<uint32_t>{0u, 0u, 0x3f800000u}));
  in.clear();
  for (int i = -4000; i <= 4000; ++i) {
    in.push_back(static_cast<float>(i) * 0.03137f);
    in.push_back(0.0f);
  }
  const std::vector<uint32_t> out = apply_to_pairs<Exp2>(in);
  for (size_t i = 0; i < out.size(); ++i) {
    at("2^", in[2 * i]);
    const double exact = std::exp2(static_cast<double>(in[2 * i]));
    CHECK(std::abs(std::bit_cast<float>(out[i]) - exact) <= std::ldexp(exact, -22));
  }
}

TEST(vector_log2) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> in = {0.0f, 0.0f, 1.0f, 0.0f, kInfinity, 0.0f};
  CHECK(apply_to_pairs<Log2>(in) == (std::vector<uint32_t>{0xff800000u, 0u, 0x7f800000u}));
  in = {-1.0f, 0.0f};
  CHECK(std::isnan(std::bit_cast<float>(apply_to_pairs<Log2>(in)[0])));
  in.clear();
  for (int i = 0; i < 4000; ++i) {
    in.push_back(std::ldexp(1.0f + static_cast<float>(i) * 0x1p-12f, i % 200 - 100));
    in.push_back(0.0f);
  }
  const std::vector<uint32_t> out = apply_to_pairs<Log2>(in);
  for (size_t i = 0; i < out.size(); ++i) {
    at("log2 of ", in[2 * i]);
    const double exact = std::log2(static_cast<double>(in[2 * i]));
    CHECK(std::abs(std::bit_cast<float>(out[i]) - exact) <=
          std::ldexp(std::max(1.0, std::abs(exact)), -22));
  }
}

}  // namespace lamina::test
