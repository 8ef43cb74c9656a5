// Adds up k chunks in f32, in the order of k, on any arch. When a k chunk ends, its sums leave a thread's registers.
// Where k is split, they become the partial sum of the k chunk, which the reduction adds. Where k is not split, each
// thread keeps the total of the earlier k chunks in shared memory, and the last k chunk adds that total to its own
// sums.
#pragma once

#include <bit>

#include "device/device.h"
#include "gemm/cuda/kernel.h"
#include "gemm/epilogue_maths.h"

namespace lamina::gemm {

// A thread has kWords words of four sums each; in shared memory its words are kStride apart.
template <int kWords, int kStride>
struct KChunkEnd {
  float* sums;
  dev::U32x4* total;  // this thread's first word in shared memory
  int steps;          // ring steps of a k chunk

  // Call it after each step of a split. done: steps of k up to and including this step, counted from the start of k.
  // store(partial): writes all sums to the partial sum with that index.
  LAMINA_DEVICE void operator()(const Split& split, int done, bool is_last,
                                const auto& store) const {
    if (done % steps != 0 && !is_last) return;
    if (split.count > 1) {
      store((done - 1) / steps);
    } else {
      if (done > steps) add_total();
      if (is_last) return;
      keep_total();
    }
    clear(kNoSum);
  }

  LAMINA_DEVICE void clear(float value) const {
    for_words([&](int w) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[w * 4 + e] = value;
    });
  }

 private:
  LAMINA_DEVICE void add_total() const {
    for_words([&](int w) {
      const dev::U32x4 word = dev::load_shared(total + w * kStride);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sums[w * 4 + e] = std::bit_cast<float>(word.x[e]) + sums[w * 4 + e];
    });
  }
  LAMINA_DEVICE void keep_total() const {
    for_words([&](int w) {
      dev::U32x4 word;
#pragma unroll
      for (int e = 0; e < 4; ++e) word.x[e] = std::bit_cast<uint32_t>(sums[w * 4 + e]);
      dev::store_shared(total + w * kStride, word);
    });
  }
  LAMINA_DEVICE static void for_words(const auto& body) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) body(w);
  }
};

}  // namespace lamina::gemm
