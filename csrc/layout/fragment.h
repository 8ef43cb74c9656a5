// The fragment maps of the warp-wide instructions: the element of a matrix that each register of each lane holds.
// PTX ISA, "Matrix fragments for mma.m16n8k16 / .m16n8k32", "Matrix fragments for wgmma.mma_async" and
// "ldmatrix", "stmatrix".
#pragma once

namespace lamina::fragment {

struct At {
  int row, column;
};

// Each function gives the place of element e of register i of a lane. kPerRegister elements fill 32 bits: 4 elements
// of 8 bits in m16n8k32, 2 elements of 16 bits in m16n8k16.

// a [16 rows, k], four registers.
template <int kPerRegister>
constexpr At mma_a(int lane, int i, int e) {
  return {lane / 4 + i % 2 * 8, lane % 4 * kPerRegister + e + i / 2 * 4 * kPerRegister};
}

// b [k rows, 8 columns], two registers.
template <int kPerRegister>
constexpr At mma_b(int lane, int i, int e) {
  return {lane % 4 * kPerRegister + e + i * 4 * kPerRegister, lane / 4};
}

// c and d [16 rows, 8 columns] of 32-bit elements, four registers.
constexpr At mma_c(int lane, int i) { return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2}; }

// wgmma: each warp of a warpgroup has 16 of the 64 rows; `thread` is one of 128.

// a [64 rows, k], four registers, as in mma.
template <int kPerRegister>
constexpr At wgmma_a(int thread, int i, int e) {
  const At at = mma_a<kPerRegister>(thread % 32, i, e);
  return {thread / 32 * 16 + at.row, at.column};
}

// d [64 rows, n columns] of 32-bit elements, n / 2 registers: four for every 8 columns, as in mma.
constexpr At wgmma_d(int thread, int i) {
  const At at = mma_c(thread % 32, i % 4);
  return {thread / 32 * 16 + at.row, i / 4 * 8 + at.column};
}

// 16-bit element e of a lane's register for one 8 x 8 matrix: ldmatrix writes the register, stmatrix reads it.
constexpr At ldmatrix(int lane, int e) { return {lane / 4, lane % 4 * 2 + e}; }
constexpr At ldmatrix_trans(int lane, int e) { return {lane % 4 * 2 + e, lane / 4}; }

}  // namespace lamina::fragment
