// Vectors of launches: the indices of threads, the size of shared memory, refused shapes.
#pragma once

#include "buffer.h"

namespace lamina::test {

struct IndexKernel : BlockOf<72> {  // two warps and a part of one
  static constexpr int kX = 2, kY = 3, kZ = 4, kFields = 10;
  struct Args {
    int32_t* out;  // [block x, y, z][thread][field]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const dev::Index3 block = dev::block_index(), grid = dev::grid_size();
    const int smem_offset =
        static_cast<int>(reinterpret_cast<uintptr_t>(dev::dynamic_smem()) % 1024);
    int32_t* const out =
        args.out +
        (((block.x * kY + block.y) * kZ + block.z) * kThreads + dev::thread_index()) * kFields;
    const int32_t fields[kFields] = {dev::thread_index(),
                                     dev::lane(),
                                     dev::warp(),
                                     block.x,
                                     block.y,
                                     block.z,
                                     grid.x,
                                     grid.y,
                                     grid.z,
                                     smem_offset};
    for (int i = 0; i < kFields; ++i) dev::store_global(out + i, fields[i]);
  }
};

TEST(vector_index) {
  each_schedule([] {
    using K = IndexKernel;
    DeviceBuffer<int32_t> gmem_out(static_cast<size_t>(K::kX * K::kY * K::kZ * 72 * K::kFields));
    run<K>({gmem_out.data()}, {{K::kX, K::kY, K::kZ}, 64});
    const std::vector<int32_t> out = gmem_out.read();
    size_t i = 0;
    for (int x = 0; x < 2; ++x)
      for (int y = 0; y < 3; ++y)
        for (int z = 0; z < 4; ++z)
          for (int thread = 0; thread < 72; ++thread)
            for (int want : {thread, thread & 31, thread >> 5, x, y, z, 2, 3, 4, 0}) {
              at("block ", x, " ", y, " ", z, " thread ", thread, " field ", i % 10);
              CHECK_EQ(out[i++], want);
            }
  });
}

struct ArgsKernel : BlockOf<200> {
  struct Args {
    int32_t table[200];
    int32_t* out;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    const int i = dev::thread_index();
    dev::store_global(args.out + i, args.table[199 - i]);
  }
};

TEST(vector_launch_args) {
  DeviceBuffer<int32_t> gmem_out(200);
  ArgsKernel::Args args{};
  for (int i = 0; i < 200; ++i) args.table[i] = i * i - 300 * i;
  args.out = gmem_out.data();
  run<ArgsKernel>(args);
  const std::vector<int32_t> out = gmem_out.read();
  for (int i = 0; i < 200; ++i) CHECK_EQ(out[static_cast<size_t>(i)], args.table[199 - i]);
}

// Writes both ends of its shared memory and reads them after a barrier.
struct SmemKernel : BlockOf<64> {
  static constexpr const char* kName = "smem_vector";
  struct Args {
    int words;
    int32_t* out;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    int32_t* const smem = reinterpret_cast<int32_t*>(dev::dynamic_smem());
    const int thread = dev::thread_index();
    dev::store_shared(thread < 32 ? smem + thread : smem + args.words - 64 + thread,
                      7 * thread + 1);
    dev::block_sync();
    const int other = 63 - thread;
    dev::store_global(args.out + thread,
                      dev::load_shared(other < 32 ? smem + other : smem + args.words - 64 + other));
  }
};

TEST(vector_launch_smem) {
  for (int bytes : {1024, 96 * 1024, 64 * 1024, 48 * 1024, 99 * 1024}) {
    DeviceBuffer<int32_t> gmem_out(64);
    run<SmemKernel>({bytes / 4, gmem_out.data()}, {{1, 1, 1}, bytes});
    const std::vector<int32_t> out = gmem_out.read();
    for (int i = 0; i < 64; ++i) CHECK_EQ(out[static_cast<size_t>(i)], 7 * (63 - i) + 1);
  }
}

TEST(vector_launch_errors) {
  DeviceBuffer<int32_t> gmem_out(64);
  const auto message = [&](const dev::LaunchShape& shape) {
    return dev::launch<SmemKernel>(shape, nullptr, {64, gmem_out.data()}).message();
  };
  const auto says = [&](const std::string& text, const char* part) {
    at("message: ", text);
    CHECK(text.rfind("smem_vector: ", 0) == 0 && text.find(part) != std::string::npos);
  };
  says(message({{0, 1, 1}, 256}), "0 x 1 x 1");
  says(message({{1, 0, 1}, 256}), "1 x 0 x 1");
  says(message({{1, 1, 0}, 256}), "1 x 1 x 0");
  says(message({{-5, 1, 1}, 256}), "-5 x 1 x 1");
  says(message({{1, 65536, 1}, 256}), "1 x 65536 x 1");
  says(message({{1, 1, 65536}, 256}), "1 x 1 x 65536");
#if defined(__CUDACC__)
  says(message({{1, 1, 1}, 1 << 20}), "invalid");
  CHECK(cudaPeekAtLastError() == cudaSuccess);
#endif
  run<SmemKernel>({64, gmem_out.data()}, {{1, 1, 1}, 256});
}

}  // namespace lamina::test
