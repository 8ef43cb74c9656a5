// Operands of a wgmma: read from shared memory as their descriptor says, and multiplied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "device/emu/wgmma.h"

namespace lamina::dev::emu {

inline constexpr int kRunBytes = 32;  // k of one instruction: 32 bytes or 16 halves
inline constexpr int kWarpgroupWarps = 4;
inline constexpr int kWarpRows = 16;  // of the 64 of A

constexpr bool is_integer(Element element) {
  return element == Element::kS8 || element == Element::kU8;
}

// Some rows of A or columns of B, as they were when they were read: K-major 32 bytes each, MN-major all
// of k = 0, then all of k = 1, ...
class SmemTile {
 public:
  SmemTile() = default;
  // Rows (A) or columns (B) from `first` on of the matrix `what`; count is a multiple of 8. Fails where
  // the descriptor makes no sense or leads out of shared memory.
  SmemTile(uint64_t descriptor, bool is_mn_major, int first, int count, const char* what,
           Where where);

  const std::byte* bytes() const { return bytes_.data(); }
  bool is_unchanged() const;                  // in shared memory
  void each_chunk(const auto& visit) const {  // visit(first byte, bytes)
    for (const std::byte* at : chunks_) visit(at, kChunkBytes);
  }

 private:
  static constexpr int kChunkBytes = 16;

  std::vector<const std::byte*> chunks_;  // where each 16 of bytes_ came from
  std::vector<std::byte> bytes_;
};

// A matrix as numbers: bytes as [row][32], halves of A as [row][16] and of B as [16][row].
struct Dense {
  std::vector<int16_t> integers;
  std::vector<double> floats;
};
Dense dense_a(const std::byte* bytes, bool is_m_major, Element element);
Dense dense_b(const std::byte* bytes, bool is_n_major, Element element, int n);

// sums[16][n], as bits of s32 or f32, += a * b. Integers wrap; floats are rounded once an element.
void multiply_add(const Dense& a, const Dense& b, int n, uint32_t* sums);

}  // namespace lamina::dev::emu
