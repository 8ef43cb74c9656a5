// PTX ISA, "ldmatrix": fragment layouts and the threads whose addresses count.
#pragma once

#include "buffer.h"

namespace lamina::test {

// Row r of matrix m lies at chunk (11 (8 m + r) + 5) % 32 of 16 bytes: rows need not be contiguous.
template <int kCount, bool kTrans>
struct LdmatrixKernel : OneWarp {
  struct Args {
    const dev::U32x4* rows;  // [matrix][row]
    uint32_t* d;             // [lane][kCount]
  };
  LAMINA_DEVICE static int chunk_of(int row) { return (11 * row + 5) % 32; }
  LAMINA_DEVICE static void run(const Args& args) {
    dev::U32x4* const smem = reinterpret_cast<dev::U32x4*>(dev::dynamic_smem());
    const int lane = dev::lane();
    dev::store_shared(smem + chunk_of(lane), dev::load_global(args.rows + lane));
    dev::warp_sync();
    // .x1 takes the addresses of threads 0 to 7, .x2 those of threads 0 to 15. Other threads pass rows of matrix
    // 3, which must not be read.
    const int row = lane < 8 * kCount ? lane : 24 + lane % 8;
    uint32_t d[kCount];
    if constexpr (kTrans) {
      dev::ldmatrix_trans(d, smem + chunk_of(row));
    } else {
      dev::ldmatrix(d, smem + chunk_of(row));
    }
    for (int i = 0; i < kCount; ++i) dev::store_global(args.d + lane * kCount + i, d[i]);
  }
};

// The decimal digits of an element name its matrix, row and column.
constexpr uint16_t matrix_element(size_t matrix, size_t row, size_t column) {
  return static_cast<uint16_t>(1000 * (matrix + 1) + 10 * row + column);
}

// Without .trans, four threads hold a row: thread 4 row + column / 2 has two neighbouring elements,
// the first in its low half. With .trans the matrix is loaded by columns: in that sentence rows and
// columns change places. Destination register i is matrix i's.
template <int kCount, bool kTrans>
std::vector<uint32_t> check_ldmatrix() {
  std::vector<uint16_t> elements;
  for (size_t matrix = 0; matrix < 4; ++matrix)
    for (size_t row = 0; row < 8; ++row)
      for (size_t column = 0; column < 8; ++column)
        elements.push_back(matrix_element(matrix, row, column));
  DeviceBuffer<uint16_t> gmem_rows(elements);
  DeviceBuffer<uint32_t> gmem_d(32 * kCount);
  run<LdmatrixKernel<kCount, kTrans>>(
      {reinterpret_cast<const dev::U32x4*>(gmem_rows.data()), gmem_d.data()}, {{1, 1, 1}, 512});
  const std::vector<uint32_t> d = gmem_d.read();
  for (size_t matrix = 0; matrix < kCount; ++matrix)
    for (size_t row = 0; row < 8; ++row)
      for (size_t column = 0; column < 8; ++column) {
        const size_t thread = kTrans ? column * 4 + row / 2 : row * 4 + column / 2;
        const size_t half = kTrans ? row % 2 : column % 2;
        at("x", kCount, kTrans ? ".trans" : "", " matrix ", matrix, " row ", row, " column ",
           column);
        CHECK_EQ(d[thread * kCount + matrix] >> (16 * half) & 0xffffu,
                 matrix_element(matrix, row, column));
      }
  return d;
}

TEST(vector_ldmatrix) {
  each_schedule([] {
    check_ldmatrix<1, false>();
    check_ldmatrix<2, false>();
    const std::vector<uint32_t> d = check_ldmatrix<4, false>();
    CHECK_EQ(d[13 * 4 + 2], 3033u << 16 | 3032u);
    CHECK_EQ(d[0 * 4 + 0], 1001u << 16 | 1000u);
    CHECK_EQ(d[31 * 4 + 3], 4077u << 16 | 4076u);
  });
}

TEST(vector_ldmatrix_trans) {
  each_schedule([] {
    check_ldmatrix<1, true>();
    check_ldmatrix<2, true>();
    const std::vector<uint32_t> d = check_ldmatrix<4, true>();
    CHECK_EQ(d[13 * 4 + 2], 3033u << 16 | 3023u);
    CHECK_EQ(d[0 * 4 + 0], 1010u << 16 | 1000u);
    CHECK_EQ(d[31 * 4 + 3], 4077u << 16 | 4067u);
  });
}

}  // namespace lamina::test
