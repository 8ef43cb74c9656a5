// Tests of the emulator's race detector: it reports unordered accesses under every schedule, and ordered accesses
// never.
#include "expect_error.h"

namespace lamina::test {
namespace {

struct Data {
  const int32_t* in;
  int32_t* out;
  int32_t* flag;
};

// A kernel whose threads share words of shared memory. It calls kBody(args, smem, thread).
template <int kCount, auto kBody>
struct Sharing : BlockOf<kCount> {
  static constexpr const char* kName = "sharing";
  using Args = Data;
  LAMINA_DEVICE static void run(const Args& args) {
    kBody(args, reinterpret_cast<int32_t*>(dev::dynamic_smem()), dev::thread_index());
  }
};

template <class Kernel>
Status launch(int blocks = 1, int resident = 1, int smem_bytes = 1024) {
  std::vector<int32_t> in(512), out(4096, -1), flag(64, 0);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 1000 + static_cast<int32_t>(i);
  const ResidentBlocks now(resident);
  return dev::launch<Kernel>({{blocks, 1, 1}, smem_bytes}, nullptr,
                             {in.data(), out.data(), flag.data()});
}

template <int kCount, auto kBody>
void expect_race(const std::string& text, int blocks = 1, int resident = 1) {
  expect_error([&] { return launch<Sharing<kCount, kBody>>(blocks, resident); }, text,
               "emulator_races.cc");
}

template <int kCount, auto kBody>
void expect_none(int blocks = 1, int resident = 1) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const Seed now(seed);
    const Status status = launch<Sharing<kCount, kBody>>(blocks, resident);
    at("seed ", seed, ": ", status.message());
    CHECK(status.is_ok());
  }
}

using Smem = int32_t*;
using Args = const Data&;

// Races between warps and between lanes. Only warp_sync and barriers order accesses; no other collective does.

TEST(emulator_reports_races_in_shared_memory) {
  expect_race<64, [](Args a, Smem s, int t) {
    dev::store_shared(s + t, a.in[t]);
    dev::store_global(a.out + t, dev::load_shared(s + 63 - t));
  }>("s");  // a race, or a word not written yet
  expect_race<64, [](Args a, Smem s, int t) {
    dev::store_shared(s + t, a.in[t]);
    dev::block_sync();
    (void)dev::load_shared(s + 63 - t);
    dev::store_shared(s + t, -5);  // overwrites before the others have read
  }>(" races with ");
  expect_race<64, [](Args, Smem s, int t) {
    if (t == 0) dev::store_shared(s, 0);
    dev::block_sync();
    dev::store_shared(s, dev::load_shared(s) + 1);  // lost updates
  }>("smem + 0: the write by");
  expect_race<64, [](Args, Smem s, int) { dev::store_shared(s, 7); }>("smem + 0: the write by");
  expect_race<128, [](Args a, Smem s, int t) {  // a ring of two stages without its second barrier
    dev::cp_async<4>(s + t, a.in + t);
    dev::cp_async_commit();
    for (int step = 0; step < 3; ++step) {
      dev::cp_async<4>(s + (step + 1) % 2 * 128 + t, a.in + t);
      dev::cp_async_commit();
      dev::cp_async_wait<1>();
      dev::block_sync();
      (void)dev::load_shared(s + step % 2 * 128 + 127 - t);
    }
  }>("smem + ");  // a race with a copy, or a read before the copy has arrived
}

TEST(emulator_reports_races_between_lanes) {
  expect_race<32, [](Args a, Smem s, int t) {
    dev::store_shared(s + t, a.in[t]);
    (void)dev::shuffle_xor(t, 1);
    (void)dev::load_shared(s + 31 - t);
  }>("the write by thread");
  expect_race<32, [](Args a, Smem s, int t) {
    dev::store_shared(s + t, a.in[t]);
    (void)dev::ballot(t > 3);
    uint32_t d[1];
    dev::ldmatrix(d, s + t % 8 * 4);
  }>("races with ldmatrix");
  expect_race<32, [](Args a, Smem s, int t) {
    dev::store_shared(s + t, a.in[t]);
    dev::warp_sync();
    uint32_t d[1];
    dev::ldmatrix(d, s + t % 8 * 4);
    dev::store_shared(s + t, 0);
  }>("the read by thread");
  expect_race<32, [](Args a, Smem s, int t) {  // each half of the warp meets separately
    dev::store_shared(s + t, a.in[t]);
    dev::warp_sync(t < 16 ? 0xffffu : 0xffff0000u);
    (void)dev::shuffle(t, 0);
    (void)dev::load_shared(s + 31 - t);
  }>("the write by thread");
}

TEST(emulator_reports_copies_that_nothing_orders) {
  expect_race<64, [](Args a, Smem s, int t) {
    dev::cp_async<4>(s + t, a.in + t);
    dev::cp_async_commit();
    (void)dev::load_shared(s + t);
  }>("is in flight for load_shared");
  expect_race<64, [](Args a, Smem s, int t) {
    dev::cp_async<4>(s + t, a.in + t);
    dev::cp_async_commit();
    dev::store_shared(s + t, 0);
  }>("is in flight for store_shared");
  expect_race<32, [](Args a, Smem s, int t) {
    dev::cp_async<4>(s + t, a.in + t);
    dev::cp_async_commit();
    dev::cp_async_wait<0>();
    (void)dev::shuffle(t, 0);
    (void)dev::load_shared(s + 31 - t);
  }>("races with load_shared");
}

TEST(emulator_reports_what_nobody_wrote) {
  expect_race<64, [](Args a, Smem s, int t) {
    if (t < 32) dev::store_shared(s + t, a.in[t]);
    dev::block_sync();
    (void)dev::load_shared(s + t);
  }>("nobody has written what is read in load_shared");
  expect_race<32, [](Args, Smem s, int t) {
    dev::store_shared(reinterpret_cast<int8_t*>(s + t), int8_t{1});
    (void)dev::load_shared(s + t);  // three bytes more
  }>("nobody has written");
  expect_race<32, [](Args, Smem s, int t) {
    uint32_t d[1];
    dev::ldmatrix(d, s + t % 8 * 4);
  }>("nobody has written what is read in ldmatrix");
}

TEST(emulator_knows_what_orders_shared_memory) {
  expect_none<64, [](Args a, Smem s, int t) {
    for (int round = 0; round < 3; ++round) {
      dev::cp_async<4>(s + t, a.in + t);
      dev::cp_async_commit();
      dev::cp_async_wait<0>();
      dev::block_sync();
      for (int i = 0; i < 64; i += 9) (void)dev::load_shared(s + i);
      dev::block_sync();
    }
  }>();
  expect_none<32, [](Args a, Smem s, int t) {
    dev::store_shared(s + t, a.in[t]);
    dev::warp_sync();
    uint32_t d[1];
    dev::ldmatrix(d, s + t % 8 * 4);
    dev::warp_sync();
    dev::store_shared(s + 31 - t, 0);
  }>();
  expect_none<64, [](Args, Smem s, int t) {  // bytes of one word
    dev::store_shared(reinterpret_cast<int8_t*>(s) + t, static_cast<int8_t>(t));
    dev::block_sync();
    (void)dev::load_shared(s + t / 4);
  }>();
  expect_none<96, [](Args a, Smem s, int t) {  // one warp fills for two, on named barriers
    for (int round = 0; round < 4; ++round)
      if (t < 32) {
        dev::barrier_sync(2, 96);
        dev::store_shared(s + t, a.in[t + round]);
        dev::barrier_arrive(1, 96);
      } else {
        dev::barrier_arrive(2, 96);
        dev::barrier_sync(1, 96);
        (void)dev::load_shared(s + 31 - t % 32);
      }
  }>();
}

}  // namespace
}  // namespace lamina::test
