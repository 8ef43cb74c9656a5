// Tests of the emulator itself: it must find planted mistakes, and say where they are.
#include <string>
#include <vector>

#include "check.h"
#include "device/device.h"

namespace lamina::test {
namespace {

// A kernel of 64 threads with one planted mistake.
enum class Mistake {
  kNone,
  kNoWait,
  kNoBarrier,
  kLaneLeaves,
  kDiverges,
  kMisaligned,
  kLopsidedBarrier,
  kWaitsForever,
  kConflicts,
};

struct Careless {
  struct Args {
    const int32_t* in;
    int32_t* out;
    Mistake mistake;
  };
  static constexpr const char* kName = "careless";
  static constexpr int kThreads = 64, kMinBlocks = 1;

  LAMINA_DEVICE static void run(const Args& args) {
    const int thread = dev::thread_index();
    const Mistake mistake = args.mistake;
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    if (mistake == Mistake::kMisaligned)
      dev::cp_async<16>(smem + 1, args.in);
    else
      dev::cp_async<4>(smem + thread, args.in + thread);
    dev::cp_async_commit();
    if (mistake != Mistake::kNoWait) dev::cp_async_wait<0>();
    if (mistake != Mistake::kNoBarrier) dev::block_sync();
    if (mistake == Mistake::kLaneLeaves && thread == 37) return;
    if (mistake == Mistake::kLopsidedBarrier) dev::barrier_sync(1, thread < 32 ? 64 : 32);
    if (mistake == Mistake::kWaitsForever)
      while (dev::load_acquire(args.out) != 12345) {
      }
    if (mistake == Mistake::kDiverges && thread % 2)
      dev::warp_sync();
    else
      dev::warp_sync();
    if (mistake == Mistake::kConflicts) (void)dev::load_shared(smem + thread * 32 % 64);
    dev::store_global(args.out + thread, dev::load_shared(smem + 63 - thread));
  }
};

struct Run {
  Status status;
  bool is_right;
};

Run run(Mistake mistake, uint64_t seed) {
  std::vector<int32_t> in(64), out(64, 0);
  for (int i = 0; i < 64; ++i) in[static_cast<size_t>(i)] = 1000 + i;
  dev::emu::options().seed = seed;
  Status status =
      dev::launch<Careless>({{1, 1, 1}, 64 * 4}, nullptr, {in.data(), out.data(), mistake});
  bool is_right = true;
  for (int i = 0; i < 64; ++i) is_right &= out[static_cast<size_t>(i)] == 1000 + 63 - i;
  return {status, is_right};
}

void expect_error(Mistake mistake, const std::string& text) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const Run result = run(mistake, seed);
    at("seed ", seed, ": ", result.status.message());
    CHECK(!result.status.is_ok());
    CHECK(result.status.message().find(text) != std::string::npos);
    CHECK(result.status.message().find("emulator.cc:") != std::string::npos);
  }
}

TEST(emulator_runs_what_is_right) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Run result = run(Mistake::kNone, seed);
    CHECK(result.status.is_ok() && result.is_right);
  }
}

TEST(emulator_shows_a_missing_wait_and_a_missing_barrier) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    CHECK(!run(Mistake::kNoWait, seed).is_right);
    CHECK(!run(Mistake::kNoBarrier, seed).is_right);
  }
}

TEST(emulator_reports_deadlocks_with_their_place) {
  expect_error(Mistake::kLaneLeaves, "deadlock");
  expect_error(Mistake::kLaneLeaves, "1 lanes are gone");
  expect_error(Mistake::kWaitsForever, "deadlock");
}

TEST(emulator_reports_divergence_and_misuse) {
  expect_error(Mistake::kDiverges, "diverged");
  expect_error(Mistake::kMisaligned, "not a multiple of 16");
  expect_error(Mistake::kLopsidedBarrier, "barrier_sync");  // refused, or a deadlock
}

TEST(emulator_works_on_after_a_failure) {
  CHECK(!run(Mistake::kDiverges, 1).status.is_ok());
  CHECK(run(Mistake::kNone, 1).is_right);
}

TEST(emulator_counts_bank_conflicts) {
  dev::emu::reset_report();
  dev::emu::options().count_accesses = true;
  CHECK(run(Mistake::kConflicts, 0).is_right);
  dev::emu::options().count_accesses = false;
  int64_t conflicts = 0, accesses = 0;
  for (const dev::emu::Site& site : dev::emu::report().sites) {
    conflicts += site.wavefronts - site.fewest;
    accesses += site.accesses;
  }
  // Two warps copy, read with a bank conflict (words 0 and 32 share a bank, so the read takes twice as long), and
  // read again.
  CHECK_EQ(accesses, 6);
  CHECK_EQ(conflicts, 2);
}

TEST(emulator_refuses_grids_that_cuda_refuses) {
  for (const dev::Index3 grid : {dev::Index3{0, 1, 1}, dev::Index3{1, 65536, 1}}) {
    const Status status = dev::launch<Careless>({grid, 256}, nullptr, {});
    CHECK(!status.is_ok() && status.message().find("careless: a grid of") == 0);
  }
}

}  // namespace
}  // namespace lamina::test
