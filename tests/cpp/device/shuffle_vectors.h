// PTX ISA, "shfl.sync" and "vote.sync".
#pragma once

#include "buffer.h"

namespace lamina::test {

enum class Shuffle { kIdx, kBfly, kUp, kDown };

// The "Semantics" of the text, for a whole warp: in operand c segmask is 0, and clamp is 0 for .up and 31 else.
constexpr int shuffle_source(Shuffle mode, int lane, int b) {
  const int bval = b & 0x1f;  // bval[4:0] = b[4:0]
  const int segmask = 0, cval = mode == Shuffle::kUp ? 0 : 0x1f;
  const int max_lane = (lane & segmask) | (cval & ~segmask & 0x1f);
  const int min_lane = lane & segmask;
  int j = 0;
  bool pval = false;
  if (mode == Shuffle::kUp) {
    j = lane - bval;
    pval = j >= max_lane;
  } else if (mode == Shuffle::kDown) {
    j = lane + bval;
    pval = j <= max_lane;
  } else if (mode == Shuffle::kBfly) {
    j = lane ^ bval;
    pval = j <= max_lane;
  } else {
    j = min_lane | (bval & ~segmask & 0x1f);
    pval = j <= max_lane;
  }
  return pval ? j : lane;
}

static_assert(shuffle_source(Shuffle::kUp, 4, 5) == 4 && shuffle_source(Shuffle::kUp, 5, 5) == 0);
static_assert(shuffle_source(Shuffle::kUp, 31, 5) == 26);
static_assert(shuffle_source(Shuffle::kDown, 26, 5) == 31);
static_assert(shuffle_source(Shuffle::kDown, 27, 5) == 27);
static_assert(shuffle_source(Shuffle::kBfly, 19, 6) == 21);
static_assert(shuffle_source(Shuffle::kIdx, 19, 6) == 6);
static_assert(shuffle_source(Shuffle::kIdx, 19, 38) == 6);  // an "out of range" b that is valid
static_assert(shuffle_source(Shuffle::kIdx, 19, -1) == 31);

template <class T, Shuffle kMode>
struct ShuffleKernel : OneWarp {
  struct Args {
    const T* a;
    const int32_t* b;
    T* d;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int lane = dev::lane();
    const T a = dev::load_global(args.a + lane);
    const int b = dev::load_global(args.b + lane);
    T d;
    if constexpr (kMode == Shuffle::kIdx) {
      d = dev::shuffle(a, b);
    } else if constexpr (kMode == Shuffle::kBfly) {
      d = dev::shuffle_xor(a, b);
    } else if constexpr (kMode == Shuffle::kUp) {
      d = dev::shuffle_up(a, b);
    } else {
      d = dev::shuffle_down(a, b);
    }
    dev::store_global(args.d + lane, d);
  }
};

template <class T, Shuffle kMode>
void check_shuffle(const std::vector<int32_t>& b) {
  std::vector<T> a(32);
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t bits = 0x9e3779b9u * static_cast<uint32_t>(lane + 1) & 0xbfffffffu;  // no NaN
    std::memcpy(&a[static_cast<size_t>(lane)], &bits, 4);
  }
  DeviceBuffer<T> gmem_a(a), gmem_d(32);
  DeviceBuffer<int32_t> gmem_b(b);
  run<ShuffleKernel<T, kMode>>({gmem_a.data(), gmem_b.data(), gmem_d.data()});
  const std::vector<T> d = gmem_d.read();
  for (int lane = 0; lane < 32; ++lane) {
    const size_t l = static_cast<size_t>(lane);
    at("shuffle mode ", static_cast<int>(kMode), " lane ", lane, " b ", b[l]);
    CHECK_EQ(d[l], a[static_cast<size_t>(shuffle_source(kMode, lane, b[l]))]);
  }
}

template <Shuffle kMode>
void check_shuffles(std::initializer_list<int> operands) {
  each_schedule([&] {
    for (int operand : operands) check_shuffle<uint32_t, kMode>(std::vector<int32_t>(32, operand));
    std::vector<int32_t> of_lane;
    for (int lane = 0; lane < 32; ++lane) of_lane.push_back((lane * 7 + 3) % 32);
    check_shuffle<int32_t, kMode>(of_lane);
    check_shuffle<float, kMode>(of_lane);
  });
}

TEST(vector_shuffle) { check_shuffles<Shuffle::kIdx>({0, 1, 13, 31}); }
TEST(vector_shuffle_xor) { check_shuffles<Shuffle::kBfly>({0, 1, 2, 4, 7, 16, 31}); }
TEST(vector_shuffle_up) { check_shuffles<Shuffle::kUp>({0, 1, 5, 16, 31}); }
TEST(vector_shuffle_down) { check_shuffles<Shuffle::kDown>({0, 1, 5, 16, 31}); }

// "bval[4:0] = b[4:0]": only five bits of the operand count, in every mode.
TEST(vector_shuffle_operand_modulo_32) {
  check_shuffles<Shuffle::kIdx>({32, 45, -1, 1000});
  check_shuffles<Shuffle::kBfly>({32, 33, 63, -1});
  check_shuffles<Shuffle::kUp>({32, 33, 69});
  check_shuffles<Shuffle::kDown>({32, 33, 69});
}

struct VoteKernel : OneWarp {
  struct Args {
    uint32_t mask;  // of the lanes whose predicate is true
    uint32_t* d;    // [32 lanes][any, all, ballot]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int lane = dev::lane();
    const bool value = args.mask >> lane & 1u;
    dev::store_global(args.d + 3 * lane, static_cast<uint32_t>(dev::any(value)));
    dev::store_global(args.d + 3 * lane + 1, static_cast<uint32_t>(dev::all(value)));
    dev::store_global(args.d + 3 * lane + 2, dev::ballot(value));
  }
};

TEST(vector_vote) {
  each_schedule([] {
    for (uint32_t mask : {0u, 1u, 0x80000000u, 0x92492492u, 0xfffdffffu, 0xffffffffu}) {
      DeviceBuffer<uint32_t> gmem_d(96);
      run<VoteKernel>({mask, gmem_d.data()});
      const std::vector<uint32_t> d = gmem_d.read();
      for (size_t lane = 0; lane < 32; ++lane) {
        at("mask ", mask, " lane ", lane);
        CHECK_EQ(d[3 * lane], mask != 0 ? 1u : 0u);
        CHECK_EQ(d[3 * lane + 1], mask == 0xffffffffu ? 1u : 0u);
        CHECK_EQ(d[3 * lane + 2], mask);
      }
    }
  });
}

}  // namespace lamina::test
