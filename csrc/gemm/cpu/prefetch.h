// Prefetches weights while a microkernel computes. Each ISA compiles its own copy: gemm/cpu/int8_nest.h says why.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/unroll.h"

namespace lamina::gemm {
namespace {

// Packed weights are prefetched this many bytes ahead. 1 to 2 KiB do best; half or twice as much costs 3 to 5 %
// (2026-11, Xeon, W8A8, 1 x 4096 x 4096).
inline constexpr int64_t kStreamAhead = 2048;

// The number of bytes from a line of packed weights to the line to prefetch. A strip has `tiles` tiles, adjacent in n.
// Each tile is a stream of `stride` bytes, and a microkernel reads the streams side by side. Near the end of a stream
// the prefetches go to the same stream of the next strip, which belongs to this task or most likely to the next task.
class StreamAhead {
 public:
  StreamAhead(const void* stream, int64_t stride, int tiles)
      : near_(std::min(kStreamAhead, stride)),
        far_(near_ + (tiles - 1) * stride),
        turn_(static_cast<const char*>(stream) + stride - near_) {}

  LAMINA_INLINE int64_t operator()(const void* line) const { return line < turn_ ? near_ : far_; }

 private:
  int64_t near_, far_;
  const void* turn_;  // from this line of the stream on, prefetches go to the next strip
};

// One multiply() prefetches a cache line of each of its tiles of n for every `every` groups of k that it multiplies.
struct Prefetch {
  const int8_t* at;
  int every;
  int left = 0;                  // groups until the next line
  const int8_t* turn = nullptr;  // from this line on, the prefetches are `jump` bytes farther ahead
  int64_t jump = 0;

  template <int kTiles>
  LAMINA_INLINE void pass(int groups, int64_t w_stride) {
    constexpr int kLine = 64;
    for (left -= groups; left < 0; left += every, at += kLine) {
      if (at == turn) at += jump;
      unroll<kTiles>([&](auto t) LAMINA_INLINE { __builtin_prefetch(at + t * w_stride, 0, 2); });
    }
  }
};

}  // namespace
}  // namespace lamina::gemm
