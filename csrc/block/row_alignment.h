// The alignment of the rows of a matrix. It decides how many bytes one copy can move.
#pragma once

#include <cstdint>

namespace lamina {

// The largest power of two, at most 16, that divides the address of every row. The result is 1 for rows that overlap
// and for rows further apart than a TMA stride can express, because TMA may refuse both.
inline int row_alignment(const void* data, int64_t rows, int64_t row_bytes, int64_t stride_bytes) {
  constexpr int64_t kTmaStride = int64_t{1} << 40;
  const bool is_one_row = rows <= 1;
  if (!is_one_row && (stride_bytes < row_bytes || stride_bytes >= kTmaStride)) return 1;
  const uint64_t low = reinterpret_cast<uintptr_t>(data) |
                       (is_one_row ? 0 : static_cast<uint64_t>(stride_bytes)) | 16;
  return static_cast<int>(low & ~(low - 1));
}

// Bytes that one copy to shared memory moves: 16, 4 or 1.
constexpr int copy_bytes_of(int alignment) { return alignment >= 16 ? 16 : alignment >= 4 ? 4 : 1; }

}  // namespace lamina
