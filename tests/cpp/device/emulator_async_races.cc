// Tests of the emulator's race detector for asynchronous copies and products: mbarriers, bulk copies, wgmma, clusters.
#include "expect_error.h"

namespace lamina::test {
namespace {

enum class Mistake {
  kNone,
  kNoInitBarrier,    // nothing orders the use of the mbarriers after their initialisation
  kOneLaneWaits,     // only one lane waits for the copy, and a shuffle follows
  kOneLaneReleases,  // one lane releases the stage, although all lanes read it
  kNoRelease,        // the stage is filled again without a release
};

// One thread fills a stage again and again, and a warp reads it.
struct Stage : BlockOf<64> {
  static constexpr const char* kName = "stage";
  static constexpr int kBytes = 128, kSteps = 3;
  struct Args {
    const std::byte* in;
    Mistake mistake;
  };

  LAMINA_DEVICE static void consume(int32_t* smem, dev::MBarrier* full, dev::MBarrier* empty,
                                    Mistake mistake) {
    const int lane = dev::lane();
    for (int step = 0; step < kSteps; ++step) {
      if (mistake != Mistake::kOneLaneWaits || lane == 0) dev::mbarrier_wait(full, step % 2);
      if (mistake == Mistake::kOneLaneWaits) (void)dev::shuffle(lane, 0);
      (void)dev::load_shared(smem + 31 - lane);
      if (mistake == Mistake::kOneLaneReleases)
        (void)dev::any(lane > 3);
      else
        dev::warp_sync();
      if (lane == 0) dev::mbarrier_arrive(empty);
    }
  }

  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    dev::MBarrier* const full = reinterpret_cast<dev::MBarrier*>(dev::dynamic_smem() + kBytes);
    dev::MBarrier* const empty = full + 1;
    const Mistake mistake = args.mistake;
    if (dev::thread_index() == 0) {
      dev::mbarrier_init(full, 1);
      dev::mbarrier_init(empty, 1);
      dev::fence_mbarrier_init();
    }
    if (mistake != Mistake::kNoInitBarrier) dev::block_sync();
    if (dev::warp() == 1) return consume(smem, full, empty, mistake);
    if (dev::thread_index() != 0) return;
    for (int step = 0; step < kSteps; ++step) {
      if (mistake != Mistake::kNoRelease) dev::mbarrier_wait(empty, (step + 1) % 2);
      dev::mbarrier_arrive_expect_tx(full, kBytes);
      dev::bulk_load(smem, args.in, kBytes, full);
      if (mistake == Mistake::kNoRelease) dev::mbarrier_wait(full, step % 2);
    }
  }
};

Status run_stage(Mistake mistake) {
  alignas(16) static const std::byte in[Stage::kBytes]{};
  return dev::launch<Stage>({{1, 1, 1}, Stage::kBytes + 16}, nullptr, {in, mistake});
}

TEST(emulator_follows_mbarriers) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const Seed now(seed);
    const Status status = run_stage(Mistake::kNone);
    at("seed ", seed, ": ", status.message());
    CHECK(status.is_ok());
  }
  const auto expect = [](Mistake mistake, const std::string& text) {
    expect_error([=] { return run_stage(mistake); }, text, "emulator_async_races.cc");
  };
  expect(Mistake::kNoInitBarrier, "mbarrier");  // not initialised, or not known to be
  expect(Mistake::kOneLaneWaits, "the write by thread 0 of block (0, 0, 0) at");
  expect(Mistake::kOneLaneReleases, " races with bulk_load");
  expect(Mistake::kNoRelease, "smem + ");  // a race with the copy or with the reads
}

enum class Product {
  kRight,
  kReleasedBeforeWait,
  kOneLaneKnows,
  kNotOrdered,  // operands written by the same warpgroup
};

// A warpgroup multiplies operands that another warp has written, and that warp then overwrites them.
struct Overwrites : BlockOf<160> {
  static constexpr const char* kName = "overwrites";
  struct Args {
    Product what;
  };
  LAMINA_DEVICE static void multiply(const std::byte* smem, Product what, dev::MBarrier* full) {
    const uint64_t tile = dev::matrix_descriptor(dev::smem_address(smem), 128, 256, Swizzle::kNone);
    if (what != Product::kOneLaneKnows || dev::lane() == 3) dev::mbarrier_wait(full, 0);
    if (what == Product::kNotOrdered) {
      dev::store_shared(reinterpret_cast<int32_t*>(dev::dynamic_smem()) + dev::thread_index(), 2);
      dev::fence_proxy_async();
    }
    int32_t d[4];
    dev::wgmma_fence();
    dev::wgmma_m64k32_s8<8>(d, tile, tile, false);
    dev::wgmma_commit();
    if (what == Product::kReleasedBeforeWait) dev::barrier_arrive(2, 160);
    dev::wgmma_wait<0>();
    if (what != Product::kReleasedBeforeWait) dev::barrier_arrive(2, 160);
  }
  LAMINA_DEVICE static void run(const Args& args) {
    std::byte* const smem = dev::dynamic_smem();
    dev::MBarrier* const full = reinterpret_cast<dev::MBarrier*>(smem + 2048);
    if (dev::thread_index() == 0) dev::mbarrier_init(full, 32);
    dev::block_sync();
    if (dev::warp() < 4) return multiply(smem, args.what, full);
    for (int round = 0; round < 2; ++round) {
      for (int i = dev::lane(); i < 512; i += 32)
        dev::store_shared(reinterpret_cast<int32_t*>(smem) + i, round);
      dev::fence_proxy_async();
      if (round == 0) dev::mbarrier_arrive(full);
      if (round == 0) dev::barrier_sync(2, 160);
    }
  }
};

TEST(emulator_follows_products) {
  const auto run_product = [](Product what) {
    return dev::launch<Overwrites>({{1, 1, 1}, 2048 + 8}, nullptr, {what});
  };
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const Seed now(seed);
    const Status status = run_product(Product::kRight);
    at("seed ", seed, ": ", status.message());
    CHECK(status.is_ok());
  }
  const auto expect = [&](Product what, const std::string& text) {
    expect_error([=] { return run_product(what); }, text, "emulator_async_races.cc");
  };
  expect(Product::kReleasedBeforeWait, "races with store_shared");
  expect(Product::kOneLaneKnows, "races with wgmma: ");
  expect(Product::kNotOrdered, "races with ");
}

enum class Peer { kRight, kNoSync, kArrivesOnly };

// A block of a cluster reads data that the other block has written to its shared memory.
struct Peers : BlockOf<32> {
  static constexpr const char* kName = "peers";
  struct Args {
    Peer what;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    const int lane = dev::lane(), other = 1 - dev::cluster_rank();
    dev::store_shared(smem + lane, 0);
    dev::cluster_sync();
    dev::store_cluster(smem + lane, lane, other);
    if (args.what == Peer::kRight) dev::cluster_sync();
    if (args.what == Peer::kArrivesOnly) dev::cluster_arrive();
    (void)dev::load_shared(smem + 31 - lane);
    if (args.what == Peer::kArrivesOnly) dev::cluster_wait();
    dev::cluster_sync();
  }
};

TEST(emulator_follows_clusters) {
  const auto run_peers = [](Peer what) {
    dev::LaunchShape shape{{4, 1, 1}, 128};
    shape.cluster = 2;
    return dev::launch<Peers>(shape, nullptr, {what});
  };
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Seed now(seed);
    CHECK(run_peers(Peer::kRight).is_ok());
  }
  for (Peer what : {Peer::kNoSync, Peer::kArrivesOnly})
    expect_error([=] { return run_peers(what); }, " races with ", "emulator_async_races.cc");
}

}  // namespace
}  // namespace lamina::test
