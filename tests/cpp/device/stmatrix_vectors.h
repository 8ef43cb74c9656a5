// PTX ISA, "stmatrix": fragment layouts and the threads whose addresses count; "elect.sync".
#pragma once

#include "buffer.h"

namespace lamina::test {

constexpr uint16_t kUntouched = 0xabcd;

// Row r of matrix m goes to chunk (11 (8 m + r) + 5) % 32 of 16 bytes: rows need not be contiguous.
template <int kCount, bool kTrans>
struct StmatrixKernel : OneWarp {
  struct Args {
    const uint32_t* d;  // [lane][kCount]
    uint16_t* smem;     // its content at the end, [32 chunks][8]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    uint16_t* const smem = reinterpret_cast<uint16_t*>(dev::dynamic_smem());
    const int lane = dev::lane();
    for (int i = 0; i < 8; ++i) dev::store_shared(smem + 8 * lane + i, kUntouched);
    dev::warp_sync();
    uint32_t d[kCount];
    for (int i = 0; i < kCount; ++i) d[i] = dev::load_global(args.d + lane * kCount + i);
    // .x1 takes the addresses of threads 0 to 7, .x2 those of threads 0 to 15. Other threads pass a chunk of matrix 3,
    // which must not be written.
    const int row = lane < 8 * kCount ? lane : 24 + lane % 8;
    if constexpr (kTrans) {
      dev::stmatrix_trans(smem + (11 * row + 5) % 32 * 8, d);
    } else {
      dev::stmatrix(smem + (11 * row + 5) % 32 * 8, d);
    }
    dev::warp_sync();
    for (int i = 0; i < 8; ++i)
      dev::store_global(args.smem + 8 * lane + i, dev::load_shared(smem + 8 * lane + i));
  }
};

// Without .trans thread 4 row + column / 2 has two neighbouring elements of a row, the first in its low
// half; with .trans the matrix is stored by columns: in that sentence rows and columns change places.
// Register i is matrix i's.
template <int kCount, bool kTrans>
std::vector<uint16_t> check_stmatrix() {
  std::vector<uint16_t> want(256, kUntouched);
  std::vector<uint32_t> d(32 * kCount);
  for (size_t matrix = 0; matrix < kCount; ++matrix)
    for (size_t row = 0; row < 8; ++row)
      for (size_t column = 0; column < 8; ++column) {
        const size_t thread = kTrans ? column * 4 + row / 2 : row * 4 + column / 2;
        const size_t half = kTrans ? row % 2 : column % 2;
        const uint16_t element = static_cast<uint16_t>(1000 * (matrix + 1) + 10 * row + column);
        d[thread * kCount + matrix] |= static_cast<uint32_t>(element) << (16 * half);
        want[(11 * (8 * matrix + row) + 5) % 32 * 8 + column] = element;
      }
  DeviceBuffer<uint32_t> gmem_d(d);
  DeviceBuffer<uint16_t> gmem_smem(256);
  run<StmatrixKernel<kCount, kTrans>>({gmem_d.data(), gmem_smem.data()}, {{1, 1, 1}, 512});
  const std::vector<uint16_t> smem = gmem_smem.read();
  at("x", kCount, kTrans ? ".trans" : "");
  CHECK(smem == want);
  return smem;
}

TEST(vector_stmatrix) {
  each_schedule([] {
    check_stmatrix<1, false>();
    check_stmatrix<2, false>();
    check_stmatrix<4, false>();
    check_stmatrix<1, true>();
    check_stmatrix<2, true>();
    check_stmatrix<4, true>();
  });
}

// Thread 13's register 2 by hand: row 3 of matrix 2, columns 2 and 3; with .trans rows 2 and 3 of column 3.
TEST(vector_stmatrix_single) {
  std::vector<uint32_t> d(32 * 4);
  d[13 * 4 + 2] = 0x22221111u;
  DeviceBuffer<uint32_t> gmem_d(d);
  DeviceBuffer<uint16_t> gmem_smem(256);
  run<StmatrixKernel<4, false>>({gmem_d.data(), gmem_smem.data()}, {{1, 1, 1}, 512});
  CHECK_EQ(gmem_smem.read()[(11 * 19 + 5) % 32 * 8 + 2], 0x1111);
  CHECK_EQ(gmem_smem.read()[(11 * 19 + 5) % 32 * 8 + 3], 0x2222);
  run<StmatrixKernel<4, true>>({gmem_d.data(), gmem_smem.data()}, {{1, 1, 1}, 512});
  CHECK_EQ(gmem_smem.read()[(11 * 18 + 5) % 32 * 8 + 3], 0x1111);
  CHECK_EQ(gmem_smem.read()[(11 * 19 + 5) % 32 * 8 + 3], 0x2222);
}

// Two warps of a block elect twice each; a warp has one leader, the same both times.
struct ElectKernel : BlockOf<64> {
  struct Args {
    int32_t* elected;  // [twice][thread]
  };
  LAMINA_DEVICE static void run(const Args& args) {
    for (int i = 0; i < 2; ++i)
      dev::store_global(args.elected + 64 * i + dev::thread_index(), int32_t{dev::elect_one()});
  }
};

TEST(vector_elect) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_elected(128);
    run<ElectKernel>({gmem_elected.data()});
    const std::vector<int32_t> elected = gmem_elected.read();
    for (auto warp = elected.begin(); warp != elected.end(); warp += 32)
      CHECK_EQ(std::count(warp, warp + 32, 1), 1);
    CHECK(std::equal(elected.begin(), elected.begin() + 64, elected.begin() + 64));
  });
}

// 512 threads have 128 registers each, and one warpgroup lends registers to another: 24 + 224 + 2 * 128 <= 4 * 128.
struct RegistersKernel : BlockOf<512> {
  struct Args {
    int32_t* done;
  };
  LAMINA_DEVICE static void run(const Args& args) {
    if (dev::warp() < 4) dev::lower_registers<24>();
    if (dev::warp() >= 12) dev::raise_registers<224>();
    dev::store_global(args.done + dev::thread_index(), 1);
  }
};

TEST(vector_setmaxnreg) {
  each_schedule([] {
    DeviceBuffer<int32_t> gmem_done(512);
    run<RegistersKernel>({gmem_done.data()});
    CHECK(gmem_done.read() == std::vector<int32_t>(512, 1));
  });
}

}  // namespace lamina::test
