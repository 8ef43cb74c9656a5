// Tests of global memory on the emulator: races between blocks, flags, memory spaces, limits.
#include "expect_error.h"

namespace lamina::test {
namespace {

enum class Mistake {
  kNone,
  kNoFenceBefore,  // in the pattern of the last block
  kNoFenceAfter,
  kNoBarrier,
};

// The last block to arrive adds up the partial sums of all blocks.
struct LastBlock : BlockOf<64> {
  static constexpr const char* kName = "last_block";
  struct Args {
    int32_t* partial;  // [block][thread]
    int32_t* count;
    int32_t* out;  // [thread]
    Mistake mistake;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    const int thread = dev::thread_index(), blocks = dev::grid_size().x;
    const Mistake mistake = args.mistake;
    dev::store_global(args.partial + dev::block_index().x * kThreads + thread, 5);
    if (mistake != Mistake::kNoBarrier) dev::block_sync();
    if (thread == 0) {
      if (mistake != Mistake::kNoFenceBefore) dev::fence_device();
      dev::store_shared(smem, dev::atomic_add(args.count, 1));
      if (mistake != Mistake::kNoFenceAfter) dev::fence_device();
    }
    dev::block_sync();
    if (dev::load_shared(smem) != blocks - 1) return;
    int32_t sum = 0;
    for (int block = 0; block < blocks; ++block)
      sum += dev::load_global(args.partial + block * kThreads + thread);
    dev::store_global(args.out + thread, sum);
  }
};

Status run_last_block(Mistake mistake) {
  std::vector<int32_t> partial(4 * 64), out(64);
  int32_t count = 0;
  const ResidentBlocks now(4);
  const Status status = dev::launch<LastBlock>({{4, 1, 1}, 4}, nullptr,
                                               {partial.data(), &count, out.data(), mistake});
  CHECK(!status.is_ok() || out == std::vector<int32_t>(64, 20));
  return status;
}

TEST(emulator_knows_the_last_block) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const Seed now(seed);
    const Status status = run_last_block(Mistake::kNone);
    at("seed ", seed, ": ", status.message());
    CHECK(status.is_ok());
  }
  for (Mistake mistake : {Mistake::kNoFenceBefore, Mistake::kNoFenceAfter, Mistake::kNoBarrier})
    expect_error([=] { return run_last_block(mistake); }, "global memory: the write by thread",
                 "emulator_global.cc");
}

struct Words {
  int32_t* out;
  int32_t* flag;
};
template <auto kBody>
struct Blocks : BlockOf<64> {
  static constexpr const char* kName = "blocks";
  using Args = Words;
  LAMINA_DEVICE static void run(const Args& args) {
    kBody(args, dev::block_index().x, dev::thread_index());
  }
};

template <auto kBody>
Status launch(int blocks = 2, int resident = 2, int smem_bytes = 256) {
  std::vector<int32_t> out(256), flag(64);
  const ResidentBlocks now(resident);
  return dev::launch<Blocks<kBody>>({{blocks, 1, 1}, smem_bytes}, nullptr,
                                    {out.data(), flag.data()});
}

template <auto kBody>
void expect(const std::string& text, int blocks = 2, int resident = 2) {
  expect_error([=] { return launch<kBody>(blocks, resident); }, text, "emulator_global.cc");
}

using Args = const Words&;

TEST(emulator_reports_races_in_global_memory) {
  constexpr auto lost_update = [](Args a, int, int) {
    dev::store_global(a.flag, dev::load_global(a.flag) + 1);
  };
  expect<lost_update>("global memory: the ", 1, 1);
  expect<[](Args a, int, int t) {  // the same between blocks, although one may have ended
    if (t == 0) dev::store_global(a.flag, dev::load_global(a.flag) + 1);
  }>("of block (", 4, 1);
  expect<[](Args a, int block, int t) {  // an ordinary store is no release
    if (t != 0) return;
    if (block == 0)
      dev::store_global(a.flag, 1);
    else
      (void)dev::load_acquire(a.flag);
  }>("races with");
  expect<[](Args a, int block, int t) {  // after the release
    if (t != 0) return;
    if (block == 0) {
      dev::store_release(a.flag, 1);
      dev::store_global(a.out, 42);
    } else {
      while (dev::load_acquire(a.flag) == 0) {
      }
      (void)dev::load_global(a.out);
    }
  }>("races with");
}

TEST(emulator_knows_flags) {
  constexpr auto ping_pong = [](Args a, int block, int t) {
    if (t != 0) return;
    for (int round = 0; round < 12000; ++round) {  // more than a deadlock's patience
      while (dev::load_acquire(a.flag) != 2 * round + block) {
      }
      dev::store_global(a.out, dev::load_global(a.out) + 1);
      dev::store_release(a.flag, 2 * round + block + 1);
    }
  };
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const Seed now(seed);
    const Status status = launch<ping_pong>();
    at("seed ", seed, ": ", status.message());
    CHECK(status.is_ok());
  }
}

TEST(emulator_reports_waits_that_cannot_end) {
  const Seed now(0);
  const Status status = launch<[](Args a, int block, int t) {
    if (t == 0 && block == 1)
      while (dev::atomic_add(a.flag, 0) == 0) {
      }
  }>(2, 1);
  CHECK(status.message().find("waits for memory without load_acquire") != std::string::npos);
}

TEST(emulator_knows_spaces) {
  expect<[](Args a, int, int t) { (void)dev::load_shared(a.out + t); }>("of shared memory");
  expect<[](Args, int, int t) {
    (void)dev::load_global(reinterpret_cast<int32_t*>(dev::dynamic_smem()) + t);
  }>("an address in shared memory, not in global memory");
  expect<[](Args, int, int) {
    const int32_t local[2] = {1, 2};
    (void)dev::load_global(local);
  }>("an address in the thread's own memory");
  expect<[](Args a, int, int t) { dev::cp_async<4>(a.out + t, a.flag + t); }>(
      "cp_async to: 4 bytes");
  expect<[](Args, int, int t) {
    dev::store_shared(reinterpret_cast<int32_t*>(dev::dynamic_smem()) + 64 + t, 0);
  }>("are not in the block's 256 bytes of shared memory");
}

TEST(launch_refuses_blocks_that_are_too_large) {
  for (int smem_bytes : {-1, 227 * 1024 + 1}) {
    const Status status = launch<[](Args, int, int) {}>(1, 1, smem_bytes);
    CHECK(status.message().find("bytes of shared memory a block") != std::string::npos);
  }
}

// On some seeds a copy reads its source when it starts, on others when a thread waits for it.
TEST(emulator_shows_a_source_that_changes) {
  int shows = 0;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const Seed now(seed);
    std::vector<int32_t> out(256), flag(64, 1);
    using Late = Blocks<[](Args a, int, int t) {
      int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
      dev::cp_async<4>(smem + t, a.flag + t);
      dev::cp_async_commit();
      dev::store_global(a.flag + t, 2);
      dev::cp_async_wait<0>();
      dev::store_global(a.out + t, dev::load_shared(smem + t));
    }>;
    CHECK(dev::launch<Late>({{1, 1, 1}, 256}, nullptr, {out.data(), flag.data()}).is_ok());
    shows += out[5];
  }
  CHECK_EQ(shows, 2 + 1 + 2 + 2);
}

TEST(emulator_shuffles_blocks) {
  constexpr auto number = [](Args a, int block, int t) {
    if (t == 0) a.out[block] = dev::atomic_add(a.flag, 1);
  };
  for (uint64_t seed : {0u, 1u, 3u}) {
    const Seed now(seed);
    std::vector<int32_t> out(64), flag(1), ordered(64);
    CHECK(dev::launch<Blocks<number>>({{64, 1, 1}, 0}, nullptr, {out.data(), flag.data()}).is_ok());
    for (int i = 0; i < 64; ++i) ordered[static_cast<size_t>(i)] = i;
    CHECK_EQ(out == ordered, seed % 2 == 0);
  }
}

}  // namespace
}  // namespace lamina::test
