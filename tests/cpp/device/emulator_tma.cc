// Tests of mbarriers and bulk loads on the emulator: planted mistakes must show.
#include <string>
#include <vector>

#include "expect_error.h"

namespace lamina::test {
namespace {

// The mistakes in a ring of two stages that one thread fills and a warp reads.
enum class Mistake {
  kNone,
  kNoWait,
  kWrongParity,
  kNoArrive,
  kNoExpect,
  kTooManyBytesExpected,
  kTooManyArrivals,
  kTooManyBytesAtAll,
  kRefilledTooEarly,
  kRefilledInFlight,
  kNotInitialised,
  kWrittenOver,
  kInitialisedTwice,
  kNoInitFence,
  kNoProxyFence,
  kFenceByAnother,
  kEndsInFlight,
  kMisaligned,
  kOutside,
  kOddBytes,
};

constexpr int kStageBytes = 512, kSteps = 6;

struct Ring : BlockOf<64> {
  static constexpr const char* kName = "ring";
  struct Args {
    const std::byte* in;  // [kSteps][kStageBytes]
    dev::U32x4* out;
    Mistake mistake;
  };

  LAMINA_DEVICE static void init(dev::MBarrier* full, dev::MBarrier* empty, Mistake mistake) {
    for (int stage = 0; stage < 2; ++stage) {
      if (mistake != Mistake::kNotInitialised) dev::mbarrier_init(full + stage, 1);
      dev::mbarrier_init(empty + stage, 32);
    }
    if (mistake == Mistake::kInitialisedTwice) dev::mbarrier_init(full, 1);
    if (mistake == Mistake::kWrittenOver)
      dev::store_shared(reinterpret_cast<uint32_t*>(full) + 1, 0u);
    if (mistake != Mistake::kNoInitFence) dev::fence_mbarrier_init();
  }

  LAMINA_DEVICE static void fill(const Args& args, int step, dev::MBarrier* full,
                                 dev::MBarrier* empty) {
    const int stage = step % 2, round = step / 2;
    const Mistake mistake = args.mistake;
    std::byte* smem = dev::dynamic_smem() + stage * kStageBytes;
    if (mistake != Mistake::kRefilledTooEarly) dev::mbarrier_wait(empty + stage, (round + 1) % 2);
    int bytes = kStageBytes;
    if (mistake == Mistake::kNoExpect) {
      dev::mbarrier_arrive(full + stage);
    } else if (mistake == Mistake::kTooManyBytesExpected) {
      dev::mbarrier_arrive_expect_tx(full + stage, kStageBytes + 16);
    } else {
      dev::mbarrier_arrive_expect_tx(full + stage, kStageBytes);
    }
    if (mistake == Mistake::kTooManyBytesAtAll)
      dev::mbarrier_expect_tx(full + stage, (1 << 20) - kStageBytes);
    if (mistake == Mistake::kTooManyArrivals) dev::mbarrier_arrive(full + stage);
    if (mistake == Mistake::kMisaligned) smem += 8;
    if (mistake == Mistake::kOutside) smem += 4096;
    if (mistake == Mistake::kOddBytes) bytes = 504;
    dev::bulk_load(smem, args.in + step * kStageBytes, bytes, full + stage);
    if (mistake == Mistake::kRefilledInFlight)
      dev::bulk_load(smem + 256, args.in + step * kStageBytes, 256, full + stage);
  }

  LAMINA_DEVICE static void run(const Args& args) {
    std::byte* const smem = dev::dynamic_smem();
    dev::MBarrier* const full = reinterpret_cast<dev::MBarrier*>(smem + 2 * kStageBytes);
    dev::MBarrier* const empty = full + 2;
    const int thread = dev::thread_index(), lane = dev::lane();
    const Mistake mistake = args.mistake;
    if (thread == 0) init(full, empty, mistake);
    if (mistake == Mistake::kNoProxyFence || mistake == Mistake::kFenceByAnother) {
      dev::store_shared(reinterpret_cast<uint32_t*>(smem) + thread, 0u);
      if (mistake == Mistake::kFenceByAnother && thread == 1) dev::fence_proxy_async();
    }
    dev::block_sync();
    for (int step = 0; step < kSteps; ++step) {
      const int stage = step % 2, round = step / 2;
      if (thread == 0) {
        fill(args, step, full, empty);
        if (mistake == Mistake::kEndsInFlight) return;
      } else if (thread >= 32) {
        if (mistake == Mistake::kEndsInFlight) return;
        if (mistake != Mistake::kNoWait)
          dev::mbarrier_wait(full + stage,
                             mistake == Mistake::kWrongParity && step == 2 ? 0 : round % 2);
        if (mistake == Mistake::kWrongParity && step == 3) dev::mbarrier_wait(full, 0);
        dev::store_global(
            args.out + step * 32 + lane,
            dev::load_shared(reinterpret_cast<dev::U32x4*>(smem + stage * kStageBytes) + lane));
        if (mistake != Mistake::kNoArrive || lane != 7) dev::mbarrier_arrive(empty + stage);
      }
    }
  }
};

struct Outcome {
  Status status;
  bool is_right;
};

Outcome run_ring(Mistake mistake) {
  const std::vector<uint8_t> in = distinct_bytes(kSteps * kStageBytes);
  std::vector<uint8_t> out(in.size());
  const Status status = dev::launch<Ring>({{1, 1, 1}, 2 * kStageBytes + 32}, nullptr,
                                          {reinterpret_cast<const std::byte*>(in.data()),
                                           reinterpret_cast<dev::U32x4*>(out.data()), mistake});
  dev::emu::options().seed = 0;
  return {status, out == in};
}

void expect_ring_error(Mistake mistake, const std::string& text) {
  expect_error([&] { return run_ring(mistake).status; }, text, "emulator_tma.cc");
}

TEST(emulator_runs_a_ring_that_is_right) {
  for (uint64_t seed = 0; seed < 32; ++seed) {
    const Seed now(seed);
    const Outcome outcome = run_ring(Mistake::kNone);
    at("seed ", seed, ": ", outcome.status.message());
    CHECK(outcome.status.is_ok() && outcome.is_right);
  }
}

// The mistake shows as wrong data or as a report.
TEST(emulator_shows_copies_that_nobody_waited_for) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed)
    for (Mistake mistake : {Mistake::kNoWait, Mistake::kWrongParity, Mistake::kRefilledTooEarly,
                            Mistake::kNoExpect}) {
      at("seed ", seed, " mistake ", static_cast<int>(mistake));
      const Seed now(seed);
      const Outcome outcome = run_ring(mistake);
      CHECK(!outcome.status.is_ok() || !outcome.is_right);
    }
}

TEST(emulator_names_the_mbarrier_of_a_deadlock) {
  expect_ring_error(Mistake::kNoArrive,
                    "the mbarrier at smem + 1040 is in phase 0: 1 of 32 arrivals and 0 bytes are "
                    "missing");
  expect_ring_error(Mistake::kNoArrive, "wait in mbarrier_wait at emulator_tma.cc");
  expect_ring_error(Mistake::kTooManyBytesExpected,
                    "the mbarrier at smem + 1024 is in phase 0: 0 of 1 arrivals and 16 bytes are "
                    "missing");
}

TEST(emulator_reports_misuse_of_mbarriers) {
  expect_ring_error(Mistake::kTooManyArrivals, "more arrivals than expected");
  expect_ring_error(Mistake::kTooManyBytesAtAll, "at most 2^20 - 1");
  expect_ring_error(Mistake::kNotInitialised, "is not initialised");
  expect_ring_error(Mistake::kWrittenOver, "it was written over");
  expect_ring_error(Mistake::kInitialisedTwice, "is in use already");
  expect_ring_error(Mistake::kNoInitFence, "has not called fence_mbarrier_init");
}

TEST(emulator_reports_misuse_of_bulk_loads) {
  expect_ring_error(Mistake::kRefilledInFlight, "the destination has a copy in flight");
  expect_ring_error(Mistake::kNoProxyFence, "has not called fence_proxy_async since");
  expect_ring_error(Mistake::kFenceByAnother, "thread 0 wrote smem + 0");
  expect_ring_error(Mistake::kEndsInFlight, "the block ended with a bulk load in flight");
  expect_ring_error(Mistake::kMisaligned, "smem + 8 is not a multiple of 16");
  expect_ring_error(Mistake::kOutside, "not in the block's 1056 bytes of shared memory");
  expect_ring_error(Mistake::kOddBytes, "504 bytes, not a multiple of 16");
}

// Two loads with a barrier each: a thread that waits for one load does not get the other, however long it waits.
struct TwoLoads : BlockOf<64> {
  struct Args {
    const std::byte* in;
    uint32_t* out;  // [4]: first after its wait, other, other after its wait, before any wait
    bool reads_too_early;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    uint32_t* const smem = reinterpret_cast<uint32_t*>(dev::dynamic_smem());
    dev::MBarrier* const barriers = reinterpret_cast<dev::MBarrier*>(smem + 8);
    if (dev::thread_index() == 0) {
      for (int i = 0; i < 2; ++i) {
        dev::mbarrier_init(barriers + i, 1);
        dev::fence_mbarrier_init();
        dev::mbarrier_arrive_expect_tx(barriers + i, 16);
        dev::bulk_load(smem + 4 * i, args.in + 16 * i, 16, barriers + i);
      }
    }
    for (int i = 0; i < 20; ++i) dev::block_sync();
    if (dev::thread_index() == 0) args.out[3] = smem[0];  // load_shared would report it
    dev::block_sync();
    dev::mbarrier_wait(barriers, 0);
    for (int i = 0; i < 20; ++i) dev::block_sync();
    if (dev::thread_index() != 0) return;
    args.out[0] = dev::load_shared(smem);
    args.out[1] = smem[4];
    if (args.reads_too_early) (void)dev::load_shared(smem + 4);
    dev::mbarrier_wait(barriers + 1, 0);
    args.out[2] = dev::load_shared(smem + 4);
  }
};

TEST(emulator_delivers_only_what_is_waited_for) {
  alignas(16) const uint32_t in[8] = {1, 1, 1, 1, 2, 2, 2, 2};
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    uint32_t out[4] = {};
    const Seed now(seed);
    const Status status = dev::launch<TwoLoads>(
        {{1, 1, 1}, 48}, nullptr, {reinterpret_cast<const std::byte*>(in), out, false});
    at("seed ", seed, ": ", status.message());
    CHECK(status.is_ok());
    const uint32_t poison = seed % 2 ? 0x7f7f7f7fu : 0xffffffffu;
    CHECK_EQ(out[0], 1u);
    CHECK_EQ(out[1], poison);
    CHECK_EQ(out[2], 2u);
    CHECK_EQ(out[3], poison);
  }
  uint32_t out[4];
  const std::byte* const from = reinterpret_cast<const std::byte*>(in);
  expect_error([&] { return dev::launch<TwoLoads>({{1, 1, 1}, 48}, nullptr, {from, out, true}); },
               "smem + 16: the copy of thread 0 of block (0, 0, 0) at", "emulator_tma.cc");
}

struct Tile : BlockOf<32> {
  static constexpr const char* kName = "tile";
  struct Args {
    dev::TensorMap map;
    int offset;
    bool has_rank_3;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    std::byte* const smem = dev::dynamic_smem();
    dev::MBarrier* const full = reinterpret_cast<dev::MBarrier*>(smem + 4096);
    if (dev::lane() != 0) return;
    dev::mbarrier_init(full, 1);
    dev::fence_mbarrier_init();
    dev::mbarrier_arrive_expect_tx(full, 1024);
    if (args.has_rank_3)
      dev::tma_load<3>(smem + args.offset, &args.map, full, {0, 0, 0});
    else
      dev::tma_load<2>(smem + args.offset, &args.map, full, {0, 0});
    dev::mbarrier_wait(full, 0);
  }
};

TEST(emulator_reports_misuse_of_tensor_maps) {
  alignas(16) static std::byte tensor[1024];
  dev::TensorMapSpec spec;
  spec.base = tensor;
  spec.extent[0] = spec.box[0] = 128;
  spec.extent[1] = spec.box[1] = 8;
  spec.stride_bytes[1] = 128;
  const auto launch = [&](dev::Swizzle swizzle, int offset, bool has_rank_3, bool has_map) {
    Tile::Args args{{}, offset, has_rank_3};
    spec.swizzle = swizzle;
    spec.box[0] = swizzle == dev::Swizzle::kNone ? 128 : dev::swizzle_bytes(swizzle);
    spec.box[1] = 1024 / spec.box[0];
    if (has_map) CHECK(dev::make_tensor_map(spec, args.map).is_ok());
    return [args] { return dev::launch<Tile>({{1, 1, 1}, 4096 + 8}, nullptr, args); };
  };
  using Sw = dev::Swizzle;
  for (Sw swizzle : {Sw::kNone, Sw::k32, Sw::k64, Sw::k128})
    CHECK(launch(swizzle, 1024, false, true)().is_ok());
  expect_error(launch(Sw::kNone, 64, false, true), "smem + 64 is not a multiple of 128",
               "emulator_tma.cc");
  expect_error(launch(Sw::k32, 128, false, true), "not a multiple of 256", "emulator_tma.cc");
  expect_error(launch(Sw::k64, 256, false, true), "not a multiple of 512", "emulator_tma.cc");
  expect_error(launch(Sw::k128, 512, false, true), "not a multiple of 1024", "emulator_tma.cc");
  expect_error(launch(Sw::k128, 0, true, true), "the map has rank 2, not 3", "emulator_tma.cc");
  expect_error(launch(Sw::k128, 0, false, false), "not made by make_tensor_map", "emulator_tma.cc");
}

}  // namespace
}  // namespace lamina::test
