// Emulates ptx/mma_sparse.cuh: the elements of a meet only the elements of b that its metadata names.
#pragma once

#include "device/emu/mma.h"
#include "device/emu/sparse_metadata.h"

namespace lamina::dev {
namespace emu {

template <class T, class Acc>
void mma_sparse(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata,
                int selector, const char* name, Where where, const auto& get) {
  using Arguments = MmaArguments<T, T, 4, Acc>;
  Arguments mine{d, a, b, metadata};
  meet(kFullWarp, name, where, &mine, [&](const Lanes& lanes) {
    std::array<uint32_t, kWarpLanes> words;
    for (size_t lane = 0; lane < kWarpLanes; ++lane)
      words[lane] = static_cast<const Arguments*>(lanes[lane])->metadata;
    const KeptColumns columns = kept_columns(words, selector, name, where);
    multiply_fragments<T, T, 4, Acc>(lanes, &columns, get);
  });
}

}  // namespace emu

inline void mma_sparse_m16n8k64_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                   uint32_t metadata, emu::Where where = emu::Where::current()) {
  emu::mma_sparse<int8_t>(d, a, b, metadata, emu::kSelectorOfBytes, "mma_sparse_m16n8k64_s8", where,
                          [](int8_t v) { return static_cast<int32_t>(v); });
}

#define LAMINA_MMA_SPARSE_F32(name, T)                                                             \
  template <int kSelector>                                                                         \
  void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata,      \
            emu::Where where = emu::Where::current()) {                                            \
    static_assert(kSelector == 0 || kSelector == 1);                                               \
    emu::mma_sparse<T>(d, a, b, metadata, kSelector, #name, where, [](T v) { return to_f32(v); }); \
  }
LAMINA_MMA_SPARSE_F32(mma_sparse_m16n8k32_f16, F16)
LAMINA_MMA_SPARSE_F32(mma_sparse_m16n8k32_bf16, BF16)
#undef LAMINA_MMA_SPARSE_F32

}  // namespace lamina::dev
