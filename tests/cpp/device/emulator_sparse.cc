// Tests of 2:4 sparse products on the emulator: metadata that PTX leaves undefined must be reported with its place.
#include <string>
#include <vector>

#include "check.h"
#include "device/sparse.h"

namespace lamina::test {
namespace {

enum class Mistake { kNone, kEqual, kUnordered, kUnusedLane, kOverwritten };

constexpr uint32_t word_of(Mistake mistake, bool is_victim) {
  if (mistake == Mistake::kNone || mistake == Mistake::kOverwritten || !is_victim)
    return 0x4e94dc84;
  return mistake == Mistake::kUnordered ? 0x4e91dc84 : 0x4e95dc84;  // 1, 0 and 1, 1 in nibble 4
}

// A warp's mma of bytes, then one of halves whose selector is 1. The lane `victim` makes the mistake.
struct CarelessMma {
  struct Args {
    Mistake mistake;
    int victim;
  };
  static constexpr const char* kName = "careless";
  static constexpr int kThreads = 32, kMinBlocks = 1;

  static void run(const Args& args) {
    const uint32_t word = word_of(args.mistake, dev::lane() == args.victim);
    const uint32_t a[4] = {}, b[4] = {};
    int32_t integers[4] = {};
    float floats[4] = {};
    if (args.mistake != Mistake::kUnusedLane) dev::mma_sparse_m16n8k64_s8(integers, a, b, word);
    dev::mma_sparse_m16n8k32_f16<1>(floats, a, b, word);
  }
};

TEST(emulator_sparse_mma_refuses_undefined_metadata) {
  const auto run = [](Mistake mistake, int victim) {
    return dev::launch<CarelessMma>({}, nullptr, {mistake, victim});
  };
  CHECK(run(Mistake::kNone, 0).is_ok());
  CHECK(run(Mistake::kUnusedLane, 5).is_ok());  // selector 1 leaves threads 0 and 1 of a group out
  const struct {
    Mistake mistake;
    int victim;
    const char* text;
  } cases[] = {
      {Mistake::kEqual, 5, "lane 5 has metadata 1, 1 for row 9 and k 16 to 19"},
      {Mistake::kUnordered, 6, "lane 6 has metadata 1, 0 for row 1 and k 48 to 51"},
      {Mistake::kUnusedLane, 7, "lane 7 has metadata 1, 1 for row 9 and k 16 to 19"},
  };
  for (const auto& each : cases) {
    const Status status = run(each.mistake, each.victim);
    at(each.text, ": ", status.message());
    CHECK(status.message().find(each.text) != std::string::npos);
    CHECK(status.message().find("emulator_sparse.cc:") != std::string::npos);
  }
}

struct CarelessWgmma {
  struct Args {
    Mistake mistake;
    int victim;
  };
  static constexpr const char* kName = "careless";
  static constexpr int kThreads = 128, kMinBlocks = 1;
  static constexpr int kSmemBytes = 2048;

  static void run(const Args& args) {
    auto* const smem = reinterpret_cast<int8_t*>(dev::dynamic_smem());
    for (int i = dev::thread_index(); i < kSmemBytes; i += kThreads)
      dev::store_shared(smem + i, int8_t{1});
    dev::fence_proxy_async();
    dev::block_sync();
    const uint64_t b = dev::matrix_descriptor(dev::smem_address(smem), 0, 512, Swizzle::k64);
    uint32_t a[4] = {}, word = word_of(args.mistake, dev::thread_index() == args.victim);
    int32_t d[4];
    dev::wgmma_fence();
    dev::wgmma_sparse_m64k64_s8<8>(d, a, b, word, false);
    dev::wgmma_commit();
    if (args.mistake == Mistake::kOverwritten && dev::thread_index() == args.victim) word ^= 1;
    dev::wgmma_wait<0>();
  }
};

TEST(emulator_sparse_wgmma_refuses_undefined_metadata) {
  const auto run = [](Mistake mistake, int victim) {
    return dev::launch<CarelessWgmma>({{1, 1, 1}, CarelessWgmma::kSmemBytes}, nullptr,
                                      {mistake, victim});
  };
  CHECK(run(Mistake::kNone, 0).is_ok());
  const std::string equal = run(Mistake::kEqual, 70).message();
  CHECK(equal.find("lane 6 has metadata 1, 1 for row 1 and k 48 to 51") != std::string::npos);
  const std::string changed = run(Mistake::kOverwritten, 70).message();
  CHECK(changed.find("metadata changed while wgmma_sparse_m64k64_s8 at") != std::string::npos);
}

}  // namespace
}  // namespace lamina::test
