// Tests of bulk stores on the emulator: planted mistakes must show, and no store may arrive before a thread waits for
// it.
#include "expect_error.h"

namespace lamina::test {
namespace {

enum class Mistake {
  kNone,
  kNoFence,
  kChanged,
  kOverwritten,
  kChangedTooEarly,
  kReadTooEarly,
  kNotWaited,
  kNotCommitted
};

struct Store : BlockOf<32> {
  static constexpr const char* kName = "store";
  struct Args {
    uint32_t* out;   // [2][32]
    uint32_t* seen;  // [2]: out[0] when its source has been read, and after the store
    Mistake mistake;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    uint32_t* const smem = reinterpret_cast<uint32_t*>(dev::dynamic_smem());
    const uint32_t lane = static_cast<uint32_t>(dev::lane());
    const Mistake mistake = args.mistake;
    dev::store_shared(smem + lane, 100 + lane);
    dev::store_shared(smem + 32 + lane, 200 + lane);
    if (mistake != Mistake::kNoFence) dev::fence_proxy_async();
    dev::warp_sync();
    if (lane != 0) return;
    dev::bulk_store(args.out, smem, 128);
    dev::bulk_commit();
    if (mistake == Mistake::kChanged) smem[5] = 77;  // unseen before the wait
    if (mistake == Mistake::kOverwritten) dev::store_shared(smem + 5, 77u);
    dev::bulk_store(args.out + 32, smem + 32, 128);
    if (mistake == Mistake::kNotCommitted) return;
    dev::bulk_commit();
    dev::bulk_wait_read<1>();
    args.seen[0] = *args.out;  // too early: load_global would report it
    if (mistake == Mistake::kReadTooEarly) (void)dev::load_global(args.out);
    if (mistake == Mistake::kNone) dev::store_shared(smem, 77u);
    if (mistake == Mistake::kChangedTooEarly) dev::store_shared(smem + 32, 77u);
    dev::bulk_wait<1>();
    args.seen[1] = dev::load_global(args.out);
    if (mistake != Mistake::kNotWaited) dev::bulk_wait_read<0>();
  }
};

struct Outcome {
  alignas(16) uint32_t out[64] = {};
  uint32_t seen[2] = {};
  Status status;

  explicit Outcome(Mistake mistake)
      : status(dev::launch<Store>({{1, 1, 1}, 256}, nullptr, {out, seen, mistake})) {}
};

TEST(emulator_stores_at_the_wait_or_at_the_end) {
  const Outcome outcome(Mistake::kNone);
  at(outcome.status.message());
  CHECK(outcome.status.is_ok());
  CHECK_EQ(outcome.seen[0], 0u);
  CHECK_EQ(outcome.seen[1], 100u);
  for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(outcome.out[i], (i / 32 + 1) * 100 + i % 32);
}

TEST(emulator_reports_misuse_of_bulk_stores) {
  const auto expect = [](Mistake mistake, const std::string& text) {
    expect_error([=] { return Outcome(mistake).status; }, text, "emulator_bulk_store.cc");
  };
  expect(Mistake::kNoFence, "has not called fence_proxy_async since");
  expect(Mistake::kChanged, "changed while it was in flight");
  expect(Mistake::kOverwritten, "smem + 20: the read by thread 0 of block (0, 0, 0) at");
  expect(Mistake::kChangedTooEarly, "smem + 128: the read by thread 0 of block (0, 0, 0) at");
  expect(Mistake::kReadTooEarly, "global memory: the write by thread 0 of block (0, 0, 0) at");
  expect(Mistake::kNotWaited, "may not have been read");
  expect(Mistake::kNotCommitted, "never committed");
}

}  // namespace
}  // namespace lamina::test
