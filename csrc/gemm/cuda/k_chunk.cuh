// Sums in f32, on any arch: where a thread's sums of a k chunk go when the k chunk ends. In the order of ../gemm_int8.h:
// into the partial of the k chunk, for the reduction to add, where k is split; else to the total of the k chunks before,
// which each thread keeps in shared memory, and the last k chunk takes up.
#pragma once

#include <bit>

#include "device/device.h"
#include "gemm/cuda/kernel.h"
#include "gemm/epilogue_maths.h"

namespace lamina::gemm {

// kWords: of four sums, in shared memory kStride apart. sum(word, e): a reference to one. store(partial): all of them, into
// the partial.
template <int kWords, int kStride, class Sum, class Store>
struct KChunkEnd {
  Sum sum;
  Store store;
  dev::U32x4* total;  // this thread's first word
  int steps;          // of a k chunk

  // After a step of a split; `done` steps of k end with it.
  LAMINA_DEVICE void operator()(const Split& split, int done, bool is_last) const {
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
      for (int e = 0; e < 4; ++e) sum(w, e) = value;
    });
  }

 private:
  LAMINA_DEVICE void add_total() const {
    for_words([&](int w) {
      const dev::U32x4 word = dev::load_shared(total + w * kStride);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum(w, e) = std::bit_cast<float>(word.x[e]) + sum(w, e);
    });
  }
  LAMINA_DEVICE void keep_total() const {
    for_words([&](int w) {
      dev::U32x4 word;
#pragma unroll
      for (int e = 0; e < 4; ++e) word.x[e] = std::bit_cast<uint32_t>(sum(w, e));
      dev::store_shared(total + w * kStride, word);
    });
  }
  LAMINA_DEVICE static void for_words(const auto& body) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) body(w);
  }
};

}  // namespace lamina::gemm
