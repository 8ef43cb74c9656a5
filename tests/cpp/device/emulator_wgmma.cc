// Tests of wgmma on the emulator: misuse must be reported with its place, or show in the result.
#include <string>
#include <vector>

#include "check.h"
#include "device/device.h"

namespace lamina::test {
namespace {

enum class Mistake {
  kNone,
  kNoWait,         // sums read before they are there
  kNoFence,        // before the first wgmma
  kNoSecondFence,  // after a wait
  kNoFenceForA,    // new values of a in registers
  kFencedBeforeA,  // a changes after the fence
  kFencedBeforeD,
  kBOverwritten,        // in flight
  kAOverwritten,        // in flight
  kFragAOverwritten,    // in flight
  kAccumulatorTouched,  // in flight
  kOtherShape,          // in flight
  kNoCommit,
  kEndsInFlight,
  kOtherDescriptor,  // in one warp
  kOtherLine,        // in one warp
  kOtherLane,        // in one lane
  kWarpMissing,
  kLaneMissing,
  kWrongOffset,
  kOutOfSmem,
  kMisaligned,
  kBaseOffset,
  kBetweenAtoms,
  kStrideOfHalfAtom,
  kLeadingOfHalfAtom,  // MN-major
};

constexpr int kB = 8192, kSmemBytes = kB + 3072;

// d[64][8] = a * b, then += a * b with a in registers. All elements of row r of a are r, of column c of b c + 1.
struct Careless {
  struct Args {
    int32_t* out;  // [thread][4]
    Mistake mistake;
  };
  static constexpr const char* kName = "careless";
  static constexpr int kThreads = 128, kMinBlocks = 1;

  static void run(const Args& args) {
    const Mistake mistake = args.mistake;
    const int thread = dev::thread_index(), warp = dev::warp();
    int8_t* const smem = reinterpret_cast<int8_t*>(dev::dynamic_smem());
    for (int i = thread; i < kSmemBytes; i += kThreads)
      dev::store_shared(smem + i,
                        static_cast<int8_t>(i < kB ? i / 128 : (i - kB) / 128 + 1));  // rows of 128
    dev::fence_proxy_async();
    dev::block_sync();

    int32_t d[4], other[12];
    uint32_t frag_a[4];
    const auto set_frag_a = [&](int factor) {
      for (int i = 0; i < 4; ++i) {
        const int row = warp * 16 + dev::lane() / 4 + i % 2 * 8;
        frag_a[i] = static_cast<uint32_t>(row * factor) * 0x01010101u;
      }
    };
    set_frag_a(1);
    uint32_t at = dev::smem_address(smem);
    if (mistake == Mistake::kMisaligned) at += 8;
    if (mistake == Mistake::kWrongOffset) at += 1024;
    if (mistake == Mistake::kBetweenAtoms) at += 128;
    if (mistake == Mistake::kOutOfSmem) at += kSmemBytes - 4096;
    const int stride = mistake == Mistake::kStrideOfHalfAtom ? 512 : 1024;
    uint64_t a = dev::matrix_descriptor(at, 16, stride, Swizzle::k128);
    const uint64_t b =
        dev::matrix_descriptor(dev::smem_address(smem + kB), 16, 1024, Swizzle::k128);
    if (mistake == Mistake::kBaseOffset) a |= uint64_t{1} << 49;
    if (mistake == Mistake::kOtherDescriptor && warp == 2) a = advance_descriptor(a, 32);
    if (mistake == Mistake::kOtherLane && thread == 77) a = advance_descriptor(a, 32);

    if (mistake == Mistake::kWarpMissing && warp == 3) return;
    if (mistake == Mistake::kLaneMissing && thread == 77) return;
    if (mistake != Mistake::kNoFence) dev::wgmma_fence();
    if (mistake == Mistake::kLeadingOfHalfAtom) {
      float sums[12];
      dev::wgmma_m64k16_f16<24, false, true>(
          sums, a, dev::matrix_descriptor(at, 128, 512, Swizzle::k32), false);
    }
    if (mistake == Mistake::kOtherLine && warp == 1)
      dev::wgmma_m64k32_s8<8>(d, a, b, false);
    else
      dev::wgmma_m64k32_s8<8>(d, a, b, false);
    dev::wgmma_commit();
    if (mistake == Mistake::kNoSecondFence) dev::wgmma_wait<0>();
    dev::wgmma_m64k32_s8<8>(d, frag_a, b, true);
    if (mistake == Mistake::kNoFenceForA) {
      dev::wgmma_commit();
      set_frag_a(2);
      dev::wgmma_m64k32_s8<8>(d, frag_a, b, true);
    }
    if (mistake == Mistake::kFencedBeforeA || mistake == Mistake::kFencedBeforeD) {
      dev::wgmma_commit();
      dev::wgmma_wait<0>();
      dev::wgmma_fence();
      if (mistake == Mistake::kFencedBeforeA) set_frag_a(2);
      if (mistake == Mistake::kFencedBeforeD && thread == 50) d[1] = 7;
      dev::wgmma_m64k32_s8<8>(d, frag_a, b, true);
    }
    if (mistake == Mistake::kOtherShape) dev::wgmma_m64k32_s8<24>(other, a, b, false);
    if (mistake == Mistake::kOtherShape)
      dev::wgmma_m64k32_s8<8>(reinterpret_cast<int32_t (&)[4]>(other[4]), a, b, true);
    if (mistake == Mistake::kBOverwritten && thread == 5) smem[kB + 1000] = 77;
    if (mistake == Mistake::kAOverwritten && thread == 5) smem[3 * 128 + 3 * 16] = 77;
    if (mistake == Mistake::kFragAOverwritten) set_frag_a(3);
    if (mistake == Mistake::kAccumulatorTouched && thread == 99) d[2] = 5;
    if (mistake != Mistake::kNoCommit) dev::wgmma_commit();
    if (mistake == Mistake::kEndsInFlight) return;
    if (mistake != Mistake::kNoWait) dev::wgmma_wait<0>();
    for (int i = 0; i < 4; ++i) dev::store_global(args.out + 4 * thread + i, d[i]);
    if (mistake == Mistake::kNoWait) dev::wgmma_wait<0>();
  }
};

struct Run {
  Status status;
  bool is_right;
};

Run run(Mistake mistake, uint64_t seed) {
  std::vector<int32_t> out(512);
  dev::emu::options().seed = seed;
  Status status = dev::launch<Careless>({{1, 1, 1}, kSmemBytes}, nullptr, {out.data(), mistake});
  dev::emu::options().seed = 0;
  bool is_right = true;
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 * 8,
                column = thread % 4 * 2 + i % 2;
      is_right &= out[static_cast<size_t>(4 * thread + i)] == 2 * 32 * row * (column + 1);
    }
  return {status, is_right};
}

void expect_error(Mistake mistake, const std::string& text) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const Run result = run(mistake, seed);
    at("seed ", seed, ", '", text, "': ", result.status.message());
    CHECK(!result.status.is_ok());
    CHECK(result.status.message().find(text) != std::string::npos);
    CHECK(result.status.message().find("emulator_wgmma.cc:") != std::string::npos);
  }
}

TEST(emulator_wgmma_runs_what_is_right) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Run result = run(Mistake::kNone, seed);
    at(result.status.message());
    CHECK(result.status.is_ok() && result.is_right);
  }
}

TEST(emulator_wgmma_shows_wrong_results) {
  for (uint64_t seed = 0; seed < 8; ++seed)
    for (Mistake mistake : {Mistake::kNoWait, Mistake::kWrongOffset}) {
      const Run result = run(mistake, seed);
      at(result.status.message());
      CHECK(result.status.is_ok() && !result.is_right);
    }
}

TEST(emulator_wgmma_wants_fences) {
  expect_error(Mistake::kNoFence, "no wgmma_fence");
  expect_error(Mistake::kNoSecondFence, "no wgmma_fence");
  expect_error(Mistake::kNoFenceForA, "registers of a changed");
  expect_error(Mistake::kFencedBeforeA, "registers of a changed");
  expect_error(Mistake::kFencedBeforeD, "accumulators changed, and");
}

TEST(emulator_wgmma_guards_what_is_in_flight) {
  expect_error(Mistake::kBOverwritten, "b in shared memory changed while wgmma_m64k32_s8 at");
  expect_error(Mistake::kAOverwritten, "a in shared memory changed while wgmma_m64k32_s8 at");
  expect_error(Mistake::kFragAOverwritten, "a in registers changed while wgmma_m64k32_s8 at");
  expect_error(Mistake::kAccumulatorTouched, "an accumulator changed while wgmma_m64k32_s8 at");
  expect_error(Mistake::kOtherShape, "another shape is in flight");
}

TEST(emulator_wgmma_sees_the_end) {
  expect_error(Mistake::kNoCommit, "did not commit: wgmma_m64k32_s8 at");
  expect_error(Mistake::kEndsInFlight, "ends with a wgmma in flight: wgmma_m64k32_s8 at");
}

TEST(emulator_wgmma_compares_the_warps) {
  expect_error(Mistake::kOtherDescriptor, "with other operands");
  expect_error(Mistake::kOtherLine, "the warpgroup diverged");
  expect_error(Mistake::kOtherLane, "lanes differ");
  expect_error(Mistake::kWarpMissing, "deadlock");
  expect_error(Mistake::kWarpMissing, "wgmma_wait at");
  expect_error(Mistake::kLaneMissing, "1 lanes are gone");
}

TEST(emulator_wgmma_checks_descriptors) {
  expect_error(Mistake::kOutOfSmem, "bytes of shared memory");
  expect_error(Mistake::kMisaligned, "multiples of 16 below 2^18");
  expect_error(Mistake::kBaseOffset, "base offset 1");
  expect_error(Mistake::kBetweenAtoms, "128 bytes into an atom");
  expect_error(Mistake::kStrideOfHalfAtom, "stride of 512 bytes");
  expect_error(Mistake::kLeadingOfHalfAtom, "leading offset of 128 bytes");
}

// Three warps do not make a warpgroup.
struct TooFew {
  struct Args {};
  static constexpr const char* kName = "too_few";
  static constexpr int kThreads = 96, kMinBlocks = 1;
  static void run(const Args&) {
    int32_t d[4];
    dev::wgmma_fence();
    dev::wgmma_m64k32_s8<8>(d, uint64_t{0}, uint64_t{0}, false);
  }
};

TEST(emulator_wgmma_wants_whole_warpgroups) {
  const Status status = dev::launch<TooFew>({{1, 1, 1}, 0}, nullptr, {});
  CHECK(status.message().find("the block has 96 threads") != std::string::npos);
}

// One warp of a warpgroup may release the operands for all, because its wait lasts until the others have issued their
// wgmma.
struct ReleasesForAll {
  struct Args {
    int32_t* out;
  };
  static constexpr const char* kName = "releases_for_all";
  static constexpr int kThreads = 256, kMinBlocks = 1;
  static void run(const Args& args) {
    int8_t* const smem = reinterpret_cast<int8_t*>(dev::dynamic_smem());
    if (dev::warp() < 4) {
      dev::barrier_sync(1, 256);
      const uint64_t tile =
          dev::matrix_descriptor(dev::smem_address(smem), 128, 256, Swizzle::kNone);
      int32_t d[4];
      dev::wgmma_fence();
      dev::wgmma_m64k32_s8<8>(d, tile, tile, false);
      dev::wgmma_commit();
      dev::wgmma_wait<0>();
      if (dev::warp() == 0) dev::barrier_arrive(2, 160);
      for (int i = 0; i < 4; ++i) dev::store_global(args.out + 4 * dev::thread_index() + i, d[i]);
    } else {
      for (int round = 1; round <= 2; ++round) {
        for (int i = dev::thread_index() - 128; i < 2048; i += 128)
          dev::store_shared(smem + i, static_cast<int8_t>(round));
        dev::fence_proxy_async();
        if (round == 1) dev::barrier_sync(1, 256);
        if (round == 1) dev::barrier_sync(2, 160);
      }
    }
  }
};

TEST(emulator_wgmma_is_over_for_all_warps_at_once) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    dev::emu::options().seed = seed;
    std::vector<int32_t> out(512);
    const Status status = dev::launch<ReleasesForAll>({{1, 1, 1}, 2048}, nullptr, {out.data()});
    at(status.message());
    CHECK(status.is_ok() && out == std::vector<int32_t>(512, 32));
  }
  dev::emu::options().seed = 0;
}

}  // namespace
}  // namespace lamina::test
