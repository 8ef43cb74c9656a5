// Tests of clusters on the emulator: planted mistakes must show.
#include "expect_error.h"

namespace lamina::test {
namespace {

enum class Mistake {
  kNone,
  kNoClusterSync,
  kArrivesTwice,
  kWaitsWithoutArrival,
  kNoSuchRank,
  kBlockGone,
  kLopsidedCluster,
};

struct Pair : BlockOf<32> {
  static constexpr const char* kName = "pair";
  struct Args {
    Mistake mistake;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    uint32_t* const smem = reinterpret_cast<uint32_t*>(dev::dynamic_smem());
    const int rank = dev::cluster_rank(), lane = dev::lane();
    const Mistake mistake = args.mistake;
    if (mistake == Mistake::kWaitsWithoutArrival) dev::cluster_wait();
    if (mistake != Mistake::kNoClusterSync) dev::cluster_arrive();
    if (mistake == Mistake::kArrivesTwice) dev::cluster_arrive();
    if (mistake != Mistake::kNoClusterSync) dev::cluster_wait();
    dev::store_cluster(smem + lane, 1u, mistake == Mistake::kNoSuchRank ? 2 : 1 - rank);
    if (mistake == Mistake::kLopsidedCluster && rank == 0) {
      // No thread arrives at this mbarrier: the other block waits at the cluster barrier.
      dev::MBarrier* const barrier = reinterpret_cast<dev::MBarrier*>(smem + 32);
      if (lane == 0) dev::mbarrier_init(barrier, 1);
      dev::warp_sync();
      dev::mbarrier_wait(barrier, 0);
    }
    if (mistake != Mistake::kBlockGone) {
      dev::cluster_sync();
    } else if (rank == 1) {
      // The loop lasts long enough for the other block to end.
      for (int i = 0; i < 1000; ++i) dev::warp_sync();
      dev::MBarrier* const barrier = reinterpret_cast<dev::MBarrier*>(smem + 32);
      if (lane == 0) dev::mbarrier_init(barrier, 1);
      dev::warp_sync();
      for (int i = 0; i < 1000; ++i) (void)dev::mbarrier_try_wait(barrier, 0);
      (void)dev::load_cluster(smem + lane, 0);
    }
  }
};

TEST(emulator_reports_misuse_of_clusters) {
  const auto launch = [](Mistake mistake) {
    dev::LaunchShape shape{{4, 1, 1}, 256};
    shape.cluster = 2;
    return dev::launch<Pair>(shape, nullptr, {mistake});
  };
  const auto expect = [&](Mistake mistake, const std::string& text) {
    expect_error([&] { return launch(mistake); }, text, "emulator_cluster.cc");
  };
  CHECK(launch(Mistake::kNone).is_ok());
  expect(Mistake::kNoClusterSync, "may not have started");
  expect(Mistake::kArrivesTwice, "has arrived before");
  expect(Mistake::kWaitsWithoutArrival, "has not arrived");
  expect(Mistake::kNoSuchRank, "rank 2 of 2");
  expect(Mistake::kBlockGone, "its shared memory is gone");
  expect(Mistake::kLopsidedCluster, "lanes from thread 0 wait in cluster_sync");
  expect(Mistake::kLopsidedCluster, "lanes from thread 0 wait in mbarrier_wait");
}

}  // namespace
}  // namespace lamina::test
