// PTX ISA, "mbarrier": phases, parity, counts of arrivals and of bytes.
#pragma once

#include <algorithm>

#include "buffer.h"

namespace lamina::test {

// In each phase all threads arrive and wait.
struct PhasesKernel : BlockOf<96> {
  static constexpr int kPhases = 5;
  struct Args {
    int32_t* out;      // [phase][thread]
    int32_t* answers;  // [2 * phase + which][thread]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    dev::MBarrier* const barrier = reinterpret_cast<dev::MBarrier*>(dev::dynamic_smem());
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem() + 16);
    const int thread = dev::thread_index();
    if (thread == 0) dev::mbarrier_init(barrier, kThreads);
    dev::block_sync();
    for (int phase = 0; phase < kPhases; ++phase) {
      dev::store_shared(smem + thread, 1000 * phase + thread);
      // The phase before is over; before phase 0 too.
      const bool before = dev::mbarrier_try_wait(barrier, (phase + 1) % 2);
      dev::mbarrier_arrive(barrier);
      dev::mbarrier_wait(barrier, phase % 2);
      const bool after = dev::mbarrier_try_wait(barrier, phase % 2);
      dev::store_global(args.out + phase * kThreads + thread,
                        dev::load_shared(smem + (thread * 35 + 1) % kThreads));
      dev::store_global(args.answers + 2 * phase * kThreads + thread, int32_t{before});
      dev::store_global(args.answers + (2 * phase + 1) * kThreads + thread, int32_t{after});
      dev::block_sync();
    }
  }
};

TEST(vector_mbarrier_phases) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_out(5 * 96), gmem_answers(10 * 96);
    run<PhasesKernel>({gmem_out.data(), gmem_answers.data()}, {{1, 1, 1}, 16 + 96 * 4});
    const std::vector<int32_t> out = gmem_out.read(), answers = gmem_answers.read();
    for (int phase = 0; phase < 5; ++phase)
      for (int thread = 0; thread < 96; ++thread)
        CHECK_EQ(out[static_cast<size_t>(phase * 96 + thread)],
                 1000 * phase + (thread * 35 + 1) % 96);
    for (int32_t answer : answers) CHECK_EQ(answer, 1);
  });
}

// No other thread arrives. try_wait returns false before the only arrival and, for the next phase, after it.
struct TryWaitKernel : OneWarp {
  struct Args {
    int32_t* out;  // [4]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    dev::MBarrier* const barrier = reinterpret_cast<dev::MBarrier*>(dev::dynamic_smem());
    if (dev::lane() != 0) return;
    dev::mbarrier_init(barrier, 1);
    dev::store_global(args.out + 0, int32_t{dev::mbarrier_try_wait(barrier, 0)});
    dev::mbarrier_arrive(barrier);
    dev::store_global(args.out + 1, int32_t{dev::mbarrier_try_wait(barrier, 0)});
    dev::store_global(args.out + 2, int32_t{dev::mbarrier_try_wait(barrier, 1)});
    dev::mbarrier_arrive(barrier);
    dev::store_global(args.out + 3, int32_t{dev::mbarrier_try_wait(barrier, 1)});
  }
};

TEST(vector_mbarrier_try_wait) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_out(4);
    run<TryWaitKernel>({gmem_out.data()}, {{1, 1, 1}, 8});
    const std::vector<int32_t> out = gmem_out.read();
    for (size_t i = 0; i < 4; ++i) CHECK_EQ(out[i], static_cast<int32_t>(i % 2));
  });
}

// Bytes are announced before or after their copy is issued, at once or in parts, with other arrivals.
struct BytesKernel : OneWarp {
  static constexpr int kBytes = 512, kPhases = 5;
  struct Args {
    const std::byte* in;  // [phase][kBytes]
    dev::U32x4* out;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    std::byte* const smem = dev::dynamic_smem();
    dev::MBarrier* const barrier = reinterpret_cast<dev::MBarrier*>(smem + kBytes);
    const int lane = dev::lane();
    if (lane == 0) {
      dev::mbarrier_init(barrier, 2);
      dev::fence_mbarrier_init();
    }
    dev::warp_sync();
    for (int phase = 0; phase < kPhases; ++phase) {
      const std::byte* const gmem = args.in + phase * kBytes;
      if (lane == 0) {
        if (phase == 0) {
          dev::mbarrier_arrive_expect_tx(barrier, kBytes);
          dev::bulk_load(smem, gmem, kBytes, barrier);
        } else if (phase == 1) {
          dev::bulk_load(smem, gmem, kBytes, barrier);
          dev::mbarrier_arrive_expect_tx(barrier, kBytes);
        } else if (phase == 2) {
          dev::mbarrier_expect_tx(barrier, 16);
          dev::mbarrier_expect_tx(barrier, kBytes - 16);
          dev::bulk_load(smem, gmem, 16, barrier);
          dev::bulk_load(smem + 16, gmem + 16, kBytes - 16, barrier);
          dev::mbarrier_arrive(barrier);
        } else if (phase == 3) {
          for (int part = 0; part < 4; ++part)
            dev::bulk_load(smem + part * 128, gmem + part * 128, 128, barrier);
          dev::mbarrier_expect_tx(barrier, 384);
          dev::mbarrier_arrive_expect_tx(barrier, 128);
        } else {
          dev::mbarrier_arrive_expect_tx(barrier, 0);
        }
      }
      if (lane == 1) dev::mbarrier_arrive(barrier);
      dev::mbarrier_wait(barrier, phase % 2);
      dev::store_global(args.out + phase * 32 + lane,
                        dev::load_shared(reinterpret_cast<dev::U32x4*>(smem) + lane));
      dev::warp_sync();
    }
  }
};

TEST(vector_mbarrier_bytes) {
  each_schedule([] {
    const std::vector<uint8_t> in = distinct_bytes(4 * 512);
    DeviceBuffer<uint8_t> gmem_in(in), gmem_out(5 * 512);
    run<BytesKernel>({reinterpret_cast<const std::byte*>(gmem_in.data()),
                      reinterpret_cast<dev::U32x4*>(gmem_out.data())},
                     {{1, 1, 1}, 512 + 8});
    const std::vector<uint8_t> out = gmem_out.read();
    for (size_t i = 0; i < 4 * 512; ++i) CHECK_EQ(out[i], in[i]);
    for (size_t i = 0; i < 512; ++i) CHECK_EQ(out[4 * 512 + i], in[3 * 512 + i]);
  });
}

// A ring of three stages: a producer warp and a consumer warp wait for each other.
struct RingKernel : BlockOf<64> {
  static constexpr int kStages = 3, kSteps = 11, kStageBytes = 512;
  struct Args {
    const std::byte* in;  // [step][kStageBytes]
    dev::U32x4* out;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    std::byte* const smem = dev::dynamic_smem();
    dev::MBarrier* const full = reinterpret_cast<dev::MBarrier*>(smem + kStages * kStageBytes);
    dev::MBarrier* const empty = full + kStages;
    const int thread = dev::thread_index();
    if (thread == 0) {
      for (int stage = 0; stage < kStages; ++stage) {
        dev::mbarrier_init(full + stage, 1);
        dev::mbarrier_init(empty + stage, 32);
      }
      dev::fence_mbarrier_init();
    }
    dev::block_sync();
    for (int step = 0; step < kSteps; ++step) {
      const int stage = step % kStages, round = step / kStages;
      std::byte* const smem_stage = smem + stage * kStageBytes;
      if (thread == 0) {
        dev::mbarrier_wait(empty + stage, (round + 1) % 2);  // free at first
        dev::mbarrier_arrive_expect_tx(full + stage, kStageBytes);
        dev::bulk_load(smem_stage, args.in + step * kStageBytes, kStageBytes, full + stage);
      } else if (thread >= 32) {
        dev::mbarrier_wait(full + stage, round % 2);
        dev::store_global(
            args.out + step * 32 + dev::lane(),
            dev::load_shared(reinterpret_cast<dev::U32x4*>(smem_stage) + dev::lane()));
        dev::mbarrier_arrive(empty + stage);
      }
    }
  }
};

TEST(vector_mbarrier_ring) {
  each_schedule([] {
    using K = RingKernel;
    const std::vector<uint8_t> in = distinct_bytes(size_t{K::kSteps} * K::kStageBytes);
    DeviceBuffer<uint8_t> gmem_in(in), gmem_out(in.size());
    run<K>({reinterpret_cast<const std::byte*>(gmem_in.data()),
            reinterpret_cast<dev::U32x4*>(gmem_out.data())},
           {{1, 1, 1}, K::kStages * (K::kStageBytes + 16)});
    CHECK(gmem_out.read() == in);
  });
}

}  // namespace lamina::test
