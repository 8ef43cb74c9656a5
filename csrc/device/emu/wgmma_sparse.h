// Emulates ptx/wgmma_sparse.cuh with wgmma.h, and refuses metadata as mma_sparse.h does. The variable that holds the
// metadata must keep its value until the wait.
#pragma once

#include "device/emu/sparse_metadata.h"
#include "device/emu/wgmma.h"

namespace lamina::dev {
namespace emu {

// a: a descriptor, or four registers.
inline void wgmma_sparse(Wgmma mine, void* d, uint64_t a, const uint32_t& metadata,
                         const char* name, Where where) {
  mine.a = a;
  wgmma(mine, d, nullptr, &metadata, name, where);
}
inline void wgmma_sparse(Wgmma mine, void* d, const uint32_t (&a)[4], const uint32_t& metadata,
                         const char* name, Where where) {
  mine.a_in_registers = true;
  wgmma(mine, d, a, &metadata, name, where);
}

}  // namespace emu

template <int kN>
void wgmma_sparse_m64k64_s8(int32_t (&d)[kN / 2], const auto& a, uint64_t b,
                            const uint32_t& metadata, bool accumulate,
                            emu::Where where = emu::Where::current()) {
  static_assert(kN >= 8 && kN <= 256 && kN % (kN < 32 ? 8 : 16) == 0);
  emu::wgmma_sparse({.n = kN,
                     .a_element = emu::Element::kS8,
                     .b_element = emu::Element::kS8,
                     .accumulate = accumulate,
                     .b = b,
                     .is_sparse = true,
                     .selector = emu::kSelectorOfBytes},
                    d, a, metadata, "wgmma_sparse_m64k64_s8", where);
}

#define LAMINA_WGMMA_SPARSE_F32(name, E)                                                      \
  template <int kN, int kSelector>                                                            \
  void name(float (&d)[kN / 2], const auto& a, uint64_t b, const uint32_t& metadata,          \
            bool accumulate, emu::Where where = emu::Where::current()) {                      \
    static_assert(kN >= 8 && kN <= 256 && kN % 8 == 0 && (kSelector == 0 || kSelector == 1)); \
    emu::wgmma_sparse({.n = kN,                                                               \
                       .a_element = emu::Element::E,                                          \
                       .b_element = emu::Element::E,                                          \
                       .accumulate = accumulate,                                              \
                       .b = b,                                                                \
                       .is_sparse = true,                                                     \
                       .selector = kSelector},                                                \
                      d, a, metadata, #name, where);                                          \
  }
LAMINA_WGMMA_SPARSE_F32(wgmma_sparse_m64k32_f16, kF16)
LAMINA_WGMMA_SPARSE_F32(wgmma_sparse_m64k32_bf16, kBf16)
#undef LAMINA_WGMMA_SPARSE_F32

}  // namespace lamina::dev
