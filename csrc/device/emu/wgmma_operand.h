// The operands of a wgmma: reads them from shared memory by their descriptors, and multiplies them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device/emu/sparse_metadata.h"
#include "device/emu/wgmma.h"

namespace lamina::dev::emu {

inline constexpr int kRunBytes =
    32;  // k of one instruction: 32 bytes or 16 halves; twice that for b if a is sparse
inline constexpr int kWarpgroupWarps = 4;
inline constexpr int kWarpRows = 16;  // rows of A, of 64

constexpr bool is_integer(Element element) {
  return element == Element::kS8 || element == Element::kU8;
}

// A copy of some rows of A or columns of B. K-major: run_bytes for each row or column. MN-major: all rows or columns for
// k = 0, then for k = 1, ...
class SmemTile {
 public:
  SmemTile() = default;
  // Rows (A) or columns (B) from `first` on of the matrix `what`; count is a multiple of 8. Fails if
  // the descriptor is invalid or leads out of shared memory.
  SmemTile(uint64_t descriptor, bool is_mn_major, int run_bytes, int first, int count,
           const char* what, Where where);

  const std::byte* bytes() const { return bytes_.data(); }
  bool is_unchanged() const;                  // whether shared memory still holds the same
  void each_chunk(const auto& visit) const {  // visit(first byte, bytes)
    for (const std::byte* at : chunks_) visit(at, kChunkBytes);
  }

 private:
  static constexpr int kChunkBytes = 16;

  std::vector<const std::byte*> chunks_;  // the source of each 16 of bytes_
  std::vector<std::byte> bytes_;
};

// Operand A in the registers of a warp, and its rows as they would lie in shared memory.
using FragmentA = std::array<std::array<uint32_t, 4>, kWarpLanes>;
std::vector<std::byte> rows_of(const FragmentA& values, bool is_integer);

// A matrix of numbers, run_bytes of each row: integers [row][k]; floats [row][k] for A and [k][row] for B.
struct Dense {
  std::vector<int16_t> integers;
  std::vector<double> floats;
};
Dense dense_a(const std::byte* bytes, bool is_m_major, Element element);
Dense dense_b(const std::byte* bytes, bool is_n_major, int run_bytes, Element element, int n);

// sums[16][n] += a * b; sums holds the bits of s32 or f32. Integers wrap; each float sum is rounded once. columns: if a is
// sparse, the k of its elements, else nullptr.
void multiply_add(const Dense& a, const KeptColumns* columns, const Dense& b, int n,
                  uint32_t* sums);

}  // namespace lamina::dev::emu
