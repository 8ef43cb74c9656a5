// PTX ISA, "bar", "bar.warp.sync", "fence", "atom"; release and acquire of "st", "red" and "ld".
#pragma once

#include <algorithm>

#include "buffer.h"

namespace lamina::test {

constexpr int token(int round, int thread) { return 1000 * round + 3 * thread + 7; }

struct BlockSyncKernel : BlockOf<96> {
  static constexpr int kRounds = 4;
  struct Args {
    int32_t* out;  // [round][thread]
  };
  // The partner of a thread, for most threads in another warp.
  static constexpr LAMINA_DEVICE int peer(int round, int thread) {
    return (thread * 35 + round * 7 + 1) % kThreads;
  }
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    const int thread = dev::thread_index();
    for (int round = 0; round < kRounds; ++round) {
      dev::store_shared(smem + thread, token(round, thread));
      dev::block_sync();
      dev::store_global(args.out + round * kThreads + thread,
                        dev::load_shared(smem + peer(round, thread)));
      dev::block_sync();
    }
  }
};

TEST(vector_block_sync) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_out(4 * 96);
    run<BlockSyncKernel>({gmem_out.data()}, {{1, 1, 1}, 96 * 4});
    const std::vector<int32_t> out = gmem_out.read();
    for (int round = 0; round < 4; ++round)
      for (int thread = 0; thread < 96; ++thread)
        CHECK_EQ(out[static_cast<size_t>(round * 96 + thread)],
                 token(round, (thread * 35 + round * 7 + 1) % 96));
  });
}

// Even lanes and odd lanes wait among themselves, for different numbers of rounds; then all lanes wait.
struct WarpSyncKernel : OneWarp {
  struct Args {
    int32_t* out;  // [lane][last round of its kind, all]
  };
  LAMINA_DEVICE static int32_t exchange(int32_t* smem, int round, int from, uint32_t mask) {
    dev::store_shared(smem + dev::lane(), token(round, dev::lane()));
    dev::warp_sync(mask);
    const int32_t value = dev::load_shared(smem + from);
    dev::warp_sync(mask);
    return value;
  }
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    const int lane = dev::lane(), next = (lane + 2) % 32;
    int32_t value = 0;
    if (lane % 2 == 0) {
      for (int round = 0; round < 3; ++round) value = exchange(smem, round, next, 0x55555555u);
    } else {
      for (int round = 0; round < 5; ++round) value = exchange(smem, round, next, 0xaaaaaaaau);
    }
    dev::store_global(args.out + 2 * lane, value);
    dev::warp_sync();
    dev::store_global(args.out + 2 * lane + 1, exchange(smem, 9, 31 - lane, dev::kFullWarp));
  }
};

TEST(vector_warp_sync) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_out(64);
    run<WarpSyncKernel>({gmem_out.data()}, {{1, 1, 1}, 128});
    const std::vector<int32_t> out = gmem_out.read();
    for (int lane = 0; lane < 32; ++lane) {
      CHECK_EQ(out[static_cast<size_t>(2 * lane)], token(lane % 2 ? 4 : 2, (lane + 2) % 32));
      CHECK_EQ(out[static_cast<size_t>(2 * lane + 1)], token(9, 31 - lane));
    }
  });
}

// Warps 0 and 1 produce, warps 2 and 3 consume. A barrier is complete when as many threads have arrived or synced as
// both sides say; it is then ready for the next round.
struct ProducerKernel : BlockOf<128> {
  static constexpr int kRounds = 4, kFull = 1, kEmpty = 15;
  struct Args {
    int32_t* out;  // [round][consumer]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    const int i = dev::thread_index() % 64;
    for (int round = 0; round < kRounds; ++round)
      if (dev::warp() < 2) {
        dev::barrier_sync(kEmpty, 128);
        dev::store_shared(smem + i, token(round, i));
        dev::barrier_arrive(kFull, 128);
      } else {
        dev::barrier_arrive(kEmpty, 128);
        dev::barrier_sync(kFull, 128);
        dev::store_global(args.out + round * 64 + i, dev::load_shared(smem + (i * 21 + 40) % 64));
      }
  }
};

TEST(vector_barrier_arrive) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_out(4 * 64);
    run<ProducerKernel>({gmem_out.data()}, {{1, 1, 1}, 256});
    const std::vector<int32_t> out = gmem_out.read();
    for (int round = 0; round < 4; ++round)
      for (int i = 0; i < 64; ++i)
        CHECK_EQ(out[static_cast<size_t>(round * 64 + i)], token(round, (i * 21 + 40) % 64));
  });
}

// Two pairs of warps, each with its own barrier and its own number of rounds.
struct PairsKernel : BlockOf<128> {
  struct Args {
    int32_t* out;  // [thread], of the last round
  };
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    const int thread = dev::thread_index(), pair = thread / 64, rounds = pair == 0 ? 3 : 6;
    for (int round = 0; round < rounds; ++round) {
      dev::store_shared(smem + thread, token(round, thread));
      dev::barrier_sync(pair + 2, 64);
      dev::store_global(args.out + thread, dev::load_shared(smem + (thread ^ 37)));
      dev::barrier_sync(pair + 2, 64);
    }
  }
};

TEST(vector_barrier_sync) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_out(128);
    run<PairsKernel>({gmem_out.data()}, {{1, 1, 1}, 512});
    const std::vector<int32_t> out = gmem_out.read();
    for (int thread = 0; thread < 128; ++thread)
      CHECK_EQ(out[static_cast<size_t>(thread)], token(thread < 64 ? 2 : 5, thread ^ 37));
  });
}

// Two blocks send messages there and back, with each kind of release.
struct MessageKernel : OneWarp {
  struct Args {
    int32_t* flags;  // [3], 0
    int32_t* data;   // [3]
    int32_t* out;    // [3]
  };
  LAMINA_DEVICE static void wait_for(const int32_t* flag, int value) {
    while (dev::load_acquire(flag) != value) {
    }
  }
  LAMINA_DEVICE static void run(const Args& args) {
    if (dev::lane() != 0) return;
    if (dev::block_index().x == 0) {
      dev::store_global(args.data, 41);
      dev::store_release(args.flags, -6);
      wait_for(args.flags + 1, 5);
      dev::store_global(args.out, dev::load_global(args.data + 1));
      dev::store_global(args.data + 2, 45);
      dev::fence_device();
      dev::atomic_add(args.flags + 2, 9);
    } else {
      wait_for(args.flags, -6);
      dev::store_global(args.out + 1, dev::load_global(args.data));
      dev::store_global(args.data + 1, 43);
      dev::reduce_release(args.flags + 1, 7);
      dev::reduce_release(args.flags + 1, -2);
      wait_for(args.flags + 2, 9);
      dev::store_global(args.out + 2, dev::load_global(args.data + 2));
    }
  }
};

TEST(vector_messages) {
  const ResidentBlocks resident(2);
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_flags(std::vector<int32_t>{0, 0, 0});
    DeviceBuffer<int32_t> gmem_data(std::vector<int32_t>{-1, -1, -1}), gmem_out(3);
    run<MessageKernel>({gmem_flags.data(), gmem_data.data(), gmem_out.data()}, {{2, 1, 1}, 0});
    const std::vector<int32_t> out = gmem_out.read();
    CHECK_EQ(out[0], 43);
    CHECK_EQ(out[1], 41);
    CHECK_EQ(out[2], 45);
  });
}

struct AtomicKernel : BlockOf<64> {
  struct Args {
    int32_t* integers;      // a counter, a sum, a sum that wraps
    float* real;            // a counter of halves
    int32_t* integers_old;  // [thread of the grid]
    float* real_old;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int thread = dev::block_index().x * kThreads + dev::thread_index();
    dev::store_global(args.integers_old + thread, dev::atomic_add(args.integers, 1));
    dev::store_global(args.real_old + thread, dev::atomic_add(args.real, 0.5f));
    dev::atomic_add(args.integers + 1, 100 - 7 * thread);
    dev::reduce_release(args.integers + 2, 1 << 24);
  }
};

TEST(vector_atomic_add) {
  each_schedule([] {
    constexpr int kThreads = 192;
    DeviceBuffer<int32_t> gmem_integers(std::vector<int32_t>{5, -40, 0x7f000000});
    DeviceBuffer<int32_t> gmem_old(kThreads);
    DeviceBuffer<float> gmem_real(std::vector<float>{-3.0f}), gmem_real_old(kThreads);
    run<AtomicKernel>(
        {gmem_integers.data(), gmem_real.data(), gmem_old.data(), gmem_real_old.data()},
        {{3, 1, 1}, 0});
    const std::vector<int32_t> integers = gmem_integers.read();
    CHECK_EQ(integers[0], 5 + kThreads);
    CHECK_EQ(integers[1], -40 + 100 * kThreads - 7 * (kThreads - 1) * kThreads / 2);
    CHECK_EQ(integers[2], 0x3f000000);  // 0x7f000000 + 0xc0000000 modulo 2^32
    CHECK_EQ(gmem_real.read()[0], 93.0f);
    // Each thread saw a different count.
    std::vector<int32_t> old = gmem_old.read();
    std::vector<float> real_old = gmem_real_old.read();
    std::sort(old.begin(), old.end());
    std::sort(real_old.begin(), real_old.end());
    for (int i = 0; i < kThreads; ++i) {
      CHECK_EQ(old[static_cast<size_t>(i)], 5 + i);
      CHECK_EQ(real_old[static_cast<size_t>(i)], -3.0f + 0.5f * static_cast<float>(i));
    }
  });
}

struct CasKernel : BlockOf<64> {
  struct Args {
    int32_t* words;  // one that is 0 and taken once, one that never matches, a counter
    int32_t* old;    // [thread of the grid][word]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int thread = dev::block_index().x * kThreads + dev::thread_index();
    dev::store_global(args.old + 2 * thread, dev::atomic_cas(args.words, 0, thread + 1));
    dev::store_global(args.old + 2 * thread + 1, dev::atomic_cas(args.words + 1, 4, thread));
    // An addition, as loops of cas make it: each thread succeeds once.
    int32_t seen = 0;
    for (int32_t old = ~seen; old != seen;) {
      old = seen;
      seen = dev::atomic_cas(args.words + 2, old, old + 3);
    }
  }
};

TEST(vector_atomic_cas) {
  each_schedule([] {
    constexpr int kThreads = 192;
    DeviceBuffer<int32_t> gmem_words(std::vector<int32_t>{0, 5, 0}), gmem_old(2 * kThreads);
    run<CasKernel>({gmem_words.data(), gmem_old.data()}, {{3, 1, 1}, 0});
    const std::vector<int32_t> words = gmem_words.read(), old = gmem_old.read();
    CHECK(words[0] >= 1 && words[0] <= kThreads);
    CHECK_EQ(words[1], 5);
    CHECK_EQ(words[2], 3 * kThreads);
    for (int i = 0; i < kThreads; ++i) {
      at("thread ", i);
      // The thread that found 0 has left its number; every other thread found the number.
      CHECK_EQ(old[static_cast<size_t>(2 * i)], i + 1 == words[0] ? 0 : words[0]);
      CHECK_EQ(old[static_cast<size_t>(2 * i + 1)], 5);
    }
  });
}

}  // namespace lamina::test
