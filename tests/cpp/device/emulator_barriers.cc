// Tests that the emulator asks for whole warps at barriers: bar and barrier.cluster are .aligned.
#include "expect_error.h"

namespace lamina::test {
namespace {

enum class Mistake {
  kTwoLines,
  kOneLine,
  kWarpSyncOnOneLine,
  kOtherBarriers,
  kHalfAWarp,
  kArrivesInHalves,
  kClusterOnTwoLines,
  kClusterHalf,
};

struct Divergent : BlockOf<64> {
  static constexpr const char* kName = "divergent";
  struct Args {
    Mistake mistake;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const bool is_odd = dev::thread_index() % 2 != 0;
    switch (args.mistake) {
      case Mistake::kTwoLines:
        if (is_odd)
          dev::block_sync();
        else
          dev::block_sync();
        break;
        // clang-format off
      case Mistake::kOneLine:
        if (is_odd) dev::block_sync(); else dev::block_sync();
        break;
      case Mistake::kWarpSyncOnOneLine:
        if (is_odd) dev::warp_sync(); else dev::warp_sync();
        break;
      // clang-format on
      case Mistake::kOtherBarriers:
        dev::barrier_sync(is_odd ? 1 : 2, 64);
        break;
      case Mistake::kHalfAWarp:
        if (is_odd) dev::barrier_sync(1, 32);
        break;
      case Mistake::kArrivesInHalves:
        if (dev::warp() == 1) return dev::barrier_sync(1, 64);
        if (is_odd) dev::barrier_arrive(1, 64);
        break;
      case Mistake::kClusterOnTwoLines:
        if (is_odd)
          dev::cluster_sync();
        else
          dev::cluster_sync();
        break;
      case Mistake::kClusterHalf:
        if (is_odd) dev::cluster_arrive();
        break;
    }
  }
};

TEST(emulator_wants_whole_warps_at_barriers) {
  const auto expect = [](Mistake mistake, const std::string& text) {
    expect_error([=] { return dev::launch<Divergent>({{1, 1, 1}, 0}, nullptr, {mistake}); }, text,
                 "emulator_barriers.cc");
  };
  for (Mistake mistake : {Mistake::kTwoLines, Mistake::kOneLine, Mistake::kWarpSyncOnOneLine,
                          Mistake::kClusterOnTwoLines})
    expect(mistake, "the warp diverged");
  expect(Mistake::kOtherBarriers, "lanes of the warp are at different barriers");
  for (Mistake mistake : {Mistake::kHalfAWarp, Mistake::kArrivesInHalves, Mistake::kClusterHalf})
    expect(mistake, "deadlock");
}

}  // namespace
}  // namespace lamina::test
