// PTX ISA, "%cluster_ctarank", "barrier.cluster", "mapa", ".shared::cluster", ".multicast::cluster",
// "griddepcontrol".
#pragma once

#include <bit>

#include "tma_vectors.h"

namespace lamina::test {

inline dev::LaunchShape cluster_shape(int blocks, int smem_bytes, int cluster) {
  dev::LaunchShape shape{{blocks, 1, 1}, smem_bytes};
  shape.cluster = cluster;
  return shape;
}

struct ClusterIndexKernel : OneWarp {
  struct Args {
    int32_t* out;  // [y][x][rank, size]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    if (dev::lane() != 0) return;
    const dev::Index3 block = dev::block_index();
    int32_t* const out = args.out + 2 * (block.y * dev::grid_size().x + block.x);
    dev::store_global(out, dev::cluster_rank());
    dev::store_global(out + 1, dev::cluster_size());
  }
};

TEST(vector_cluster_index) {
  for (int cluster : {1, 2, 4, 8}) {
    DeviceBuffer<int32_t> gmem_out(2 * 16);
    dev::LaunchShape shape = cluster_shape(8, 0, cluster);
    shape.grid.y = 2;
    run<ClusterIndexKernel>({gmem_out.data()}, shape);
    const std::vector<int32_t> out = gmem_out.read();
    for (int block = 0; block < 16; ++block) {
      CHECK_EQ(out[static_cast<size_t>(2 * block)], block % 8 % cluster);
      CHECK_EQ(out[static_cast<size_t>(2 * block + 1)], cluster);
    }
  }
}

// In each round a block writes to the next block and reads from the block before.
template <class V>
struct NeighbourKernel : BlockOf<64> {
  static constexpr int kRounds = 3;
  struct Args {
    V* out;  // [block][round][loaded, stored][thread]
  };
  LAMINA_DEVICE static V value(int block, int round, int thread) {
    struct {
      uint32_t x[sizeof(V) / 4];
    } words;
    for (size_t i = 0; i < sizeof(V) / 4; ++i)
      words.x[i] = static_cast<uint32_t>(block * 10000 + round * 1000 + thread + i * 100000);
    return std::bit_cast<V>(words);
  }
  LAMINA_DEVICE static void run(const Args& args) {
    V* const mine = reinterpret_cast<V*>(dev::dynamic_smem());
    V* const received = mine + kThreads;
    const int block = dev::block_index().x, rank = dev::cluster_rank(), size = dev::cluster_size();
    const int thread = dev::thread_index();
    dev::cluster_sync();
    for (int round = 0; round < kRounds; ++round) {
      dev::store_shared(mine + thread, value(block, round, thread));
      dev::store_cluster(received + thread, value(block, round, thread + 500), (rank + 1) % size);
      dev::cluster_arrive();
      dev::cluster_wait();
      V* const out = args.out + (block * kRounds + round) * 2 * kThreads + thread;
      const int other = kThreads - 1 - thread;
      dev::store_global(out, dev::load_cluster(mine + other, (rank + size - 1) % size));
      dev::store_global(out + kThreads, dev::load_shared(received + other));
      dev::cluster_sync();
    }
  }
};

template <class V>
void check_neighbours() {
  constexpr int kBlocks = 8, kCluster = 4;
  constexpr size_t kWords = sizeof(V) / 4;
  DeviceBuffer<uint32_t> gmem_out(kWords * kBlocks * 3 * 2 * 64);
  run<NeighbourKernel<V>>({reinterpret_cast<V*>(gmem_out.data())},
                          cluster_shape(kBlocks, 2 * 64 * static_cast<int>(sizeof(V)), kCluster));
  const std::vector<uint32_t> out = gmem_out.read();
  size_t i = 0;
  for (int block = 0; block < kBlocks; ++block)
    for (int round = 0; round < 3; ++round)
      for (int what = 0; what < 2; ++what)
        for (int thread = 0; thread < 64; ++thread)
          for (size_t word = 0; word < kWords; ++word, ++i) {
            const int from = block / kCluster * kCluster + (block + kCluster - 1) % kCluster;
            at("words of ", sizeof(V), " block ", block, " round ", round, " thread ", thread);
            CHECK_EQ(out[i],
                     from * 10000u + round * 1000u + what * 500u + 63u - thread + word * 100000);
          }
}

TEST(vector_cluster_shared_memory) {
  each_schedule([] {
    check_neighbours<uint32_t>();
    check_neighbours<uint64_t>();
    check_neighbours<dev::U32x4>();
  });
}

// The cluster barrier does not wait for threads that have ended. Here all but one warp of each block have ended.
struct EndedWarpsKernel : BlockOf<96> {
  struct Args {
    uint32_t* out;  // [block][lane]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    uint32_t* const smem = reinterpret_cast<uint32_t*>(dev::dynamic_smem());
    const int lane = dev::lane(), block = dev::block_index().x;
    if (dev::warp() != block % 3) return;
    dev::cluster_sync();
    dev::store_cluster(smem + lane, static_cast<uint32_t>(100 * block + lane),
                       1 - dev::cluster_rank());
    dev::cluster_sync();
    dev::store_global(args.out + 32 * block + lane, dev::load_shared(smem + lane));
  }
};

TEST(vector_cluster_ended_warps) {
  each_schedule([] {
    DeviceBuffer<uint32_t> gmem_out(4 * 32);
    run<EndedWarpsKernel>({gmem_out.data()}, cluster_shape(4, 128, 2));
    const std::vector<uint32_t> out = gmem_out.read();
    for (uint32_t i = 0; i < 4 * 32; ++i) CHECK_EQ(out[i], 100 * (i / 32 ^ 1) + i % 32);
  });
}

// Two blocks each load half of a tile and send it to both. A stage is reused only when both blocks are done with it,
// which each says at both barriers.
struct MulticastKernel : OneWarp {
  static constexpr int kSteps = 4, kRows = 8, kColumns = 64, kCluster = 2;
  static constexpr int kHalfBytes = kRows * kColumns, kTileBytes = kCluster * kHalfBytes;
  struct Args {
    dev::TensorMap map;
    uint32_t* out;  // [block][step][kTileBytes / 4]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    std::byte* const smem = dev::dynamic_smem();
    dev::MBarrier* const full = reinterpret_cast<dev::MBarrier*>(smem + kTileBytes);
    dev::MBarrier* const empty = full + 1;
    const int rank = dev::cluster_rank(), lane = dev::lane();
    if (lane == 0) {
      dev::mbarrier_init(full, 1);
      dev::mbarrier_init(empty, kCluster);
      dev::fence_mbarrier_init();
    }
    dev::warp_sync();
    dev::cluster_sync();
    for (int step = 0; step < kSteps; ++step) {
      if (lane == 0) {
        dev::mbarrier_wait(empty, (step + 1) % 2);
        dev::mbarrier_arrive_expect_tx(full, kTileBytes);
        dev::tma_load_multicast<2>(smem + rank * kHalfBytes, &args.map, full,
                                   {0, (step * kCluster + rank) * kRows}, 3);
      }
      dev::warp_sync();
      dev::mbarrier_wait(full, step % 2);
      for (int word = lane; word < kTileBytes / 4; word += 32)
        dev::store_global(args.out + (dev::block_index().x * kSteps + step) * kTileBytes / 4 + word,
                          dev::load_shared(reinterpret_cast<uint32_t*>(smem) + word));
      dev::warp_sync();
      if (lane < kCluster) dev::mbarrier_arrive_remote(empty, lane);
    }
    dev::cluster_sync();  // a block must not end while others arrive at its barriers
  }
};

TEST(vector_tma_multicast) {
  each_schedule([] {
    using K = MulticastKernel;
    const std::vector<uint8_t> in = distinct_bytes(size_t{K::kSteps} * K::kTileBytes);
    DeviceBuffer<uint8_t> gmem_in(in), gmem_out(2 * in.size());
    const TileCase tile{"halves",
                        2,
                        1,
                        {K::kColumns, K::kSteps * K::kCluster * K::kRows},
                        {0, K::kColumns},
                        {K::kColumns, K::kRows},
                        Sw::kNone,
                        {}};
    K::Args args{};
    args.map = tile.map(gmem_in.data());
    args.out = reinterpret_cast<uint32_t*>(gmem_out.data());
    run<K>(args, cluster_shape(2, K::kTileBytes + 16, K::kCluster));
    const std::vector<uint8_t> out = gmem_out.read();
    for (size_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], in[i % in.size()]);
  });
}

// Each launch adds to the result of the launch before, although it may start before that launch ends.
struct DependentKernel : BlockOf<64> {
  struct Args {
    int32_t* sums;  // [block][thread]
    int32_t factor;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const sum = args.sums + dev::block_index().x * kThreads + dev::thread_index();
    dev::launch_dependents();
    dev::wait_for_previous();
    dev::store_global(sum, dev::load_global(sum) * args.factor + dev::thread_index());
  }
};

TEST(vector_dependent_launches) {
  constexpr int kBlocks = 6;
  DeviceBuffer<int32_t> gmem_sums(std::vector<int32_t>(kBlocks * 64, 1));
  dev::LaunchShape shape{{kBlocks, 1, 1}};
  shape.overlaps_previous = true;
  for (int32_t factor : {2, 3, 5, 7}) {
    const Status status = dev::launch<DependentKernel>(shape, nullptr, {gmem_sums.data(), factor});
    CHECK(status.is_ok());
  }
  CHECK(wait("dependent").is_ok());
  const std::vector<int32_t> sums = gmem_sums.read();
  for (int i = 0; i < kBlocks * 64; ++i) {
    const int thread = i % 64;
    CHECK_EQ(sums[static_cast<size_t>(i)], 2 * 3 * 5 * 7 + thread * (3 * 5 * 7 + 5 * 7 + 7 + 1));
  }
}

}  // namespace lamina::test
