// Loads and stores of neighbouring elements of a row, in whole words where the addresses allow whole words.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "base/numeric.h"
#include "device/device.h"

namespace lamina {

// kCount neighbouring elements of a row. Word: the largest type whose copies make up the run.
template <class T, int kCount>
struct Run {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * kCount;
  using Word =
      std::conditional_t<kBytes % 16 == 0, dev::U32x4,
                         std::conditional_t<kBytes == 8, dev::U32x2,
                                            std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;
  static constexpr int kWords = kBytes / static_cast<int>(sizeof(Word));
  static_assert(kWords * static_cast<int>(sizeof(Word)) == kBytes);

  T value[kCount];
};

// Loads a run from each address in `from`. Only the first `count` >= 1 elements exist; the others repeat the first
// element. Whole words are loaded where the whole run exists and every address is aligned. All loads are issued
// before any is used.
template <class T, int kCount, int kRuns>
LAMINA_DEVICE void load_runs(const T* const (&from)[kRuns], int64_t count,
                             Run<T, kCount> (&runs)[kRuns]) {
  using Word = typename Run<T, kCount>::Word;
  struct Words {
    Word word[Run<T, kCount>::kWords];
  };
  uintptr_t low = 0;
#pragma unroll
  for (int r = 0; r < kRuns; ++r) low |= reinterpret_cast<uintptr_t>(from[r]);
  if (count >= kCount && low % sizeof(Word) == 0) {
    Words words[kRuns];
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
#pragma unroll
      for (int v = 0; v < Run<T, kCount>::kWords; ++v)
        words[r].word[v] = dev::load_global(reinterpret_cast<const Word*>(from[r]) + v);
#pragma unroll
    for (int r = 0; r < kRuns; ++r) runs[r] = std::bit_cast<Run<T, kCount>>(words[r]);
  } else {
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
#pragma unroll
      for (int e = 0; e < kCount; ++e)
        runs[r].value[e] = dev::load_global(from[r] + (e < count ? e : 0));
  }
}

// Stores the first `count` elements of a run, in whole words where the whole run is stored and `to` is aligned.
template <class T, int kCount>
LAMINA_DEVICE void store_run(T* to, const Run<T, kCount>& run, int64_t count) {
  using Word = typename Run<T, kCount>::Word;
  struct Words {
    Word word[Run<T, kCount>::kWords];
  };
  if (count >= kCount && reinterpret_cast<uintptr_t>(to) % sizeof(Word) == 0) {
    const Words words = std::bit_cast<Words>(run);
#pragma unroll
    for (int v = 0; v < Run<T, kCount>::kWords; ++v)
      dev::store_global(reinterpret_cast<Word*>(to) + v, words.word[v]);
  } else {
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      if (e < count) dev::store_global(to + e, run.value[e]);
  }
}

// Stores the first `count` values, rounded, in elements from element `at` of `row`.
template <class Out, int kCount>
LAMINA_DEVICE void store_rounded(const float (&x)[kCount], int64_t count, void* row, int64_t at) {
  Run<Out, kCount> run;
#pragma unroll
  for (int e = 0; e < kCount; ++e) run.value[e] = from_f32<Out>(x[e]);
  store_run(static_cast<Out*>(row) + at, run, count);
}
template <int kCount>
LAMINA_DEVICE void store_rounded(const float (&x)[kCount], int64_t count, DType dtype, void* row,
                                 int64_t at) {
  if (dtype == DType::kF32) store_rounded<float>(x, count, row, at);
  if (dtype == DType::kF16) store_rounded<F16>(x, count, row, at);
  if (dtype == DType::kBF16) store_rounded<BF16>(x, count, row, at);
}

}  // namespace lamina
