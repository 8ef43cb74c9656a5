// Emulates ptx/mma.cuh: gathers the fragments of 32 lanes into matrices, multiplies them and hands out the sums.
#pragma once

#include <cstring>
#include <type_traits>

#include "base/numeric.h"
#include "device/emu/executor.h"
#include "device/emu/sparse_metadata.h"
#include "layout/fragment.h"

namespace lamina::dev {
namespace emu {

// d += a * b for m16n8kK, gathered from the fragments of 32 lanes. A and B are the stored element types, 4 or 2 elements in
// a register; get(element) converts an element to a number that Acc can multiply. kB: registers of b, 2, or 4 where a is
// sparse; then `columns` says which k the elements of a stand for. Each float sum is rounded once: PTX does not define
// the order inside the tensor core, so tests must allow for any order.
template <class A, class B, int kB, class Acc>
struct MmaArguments {
  Acc* d;
  const uint32_t* a;
  const uint32_t* b;
  uint32_t metadata;
};

template <class A, class B, int kB, class Acc>
void multiply_fragments(const Lanes& lanes, const KeptColumns* columns, const auto& get) {
  static_assert(sizeof(A) == sizeof(B));
  constexpr int kPer = 4 / static_cast<int>(sizeof(A)), kKept = 8 * kPer, kK = 4 * kB * kPer;
  using Wide = std::conditional_t<std::is_integral_v<Acc>, uint32_t, double>;
  using Arguments = MmaArguments<A, B, kB, Acc>;
  Wide left[16][kKept], right[8][kK];
  const auto element = [](const uint32_t* registers, int i, int e, auto& out) {
    std::memcpy(&out, reinterpret_cast<const std::byte*>(registers + i) + e * sizeof(A), sizeof(A));
  };
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const Arguments& from = *static_cast<Arguments*>(lanes[static_cast<size_t>(lane)]);
    for (int e = 0; e < kPer; ++e) {
      for (int i = 0; i < 4; ++i) {
        A value;
        element(from.a, i, e, value);
        const fragment::At at = fragment::mma_a<kPer>(lane, i, e);
        left[at.row][at.column] = static_cast<Wide>(get(value));
      }
      for (int i = 0; i < kB; ++i) {
        B value;
        element(from.b, i, e, value);
        const fragment::At at = fragment::mma_b<kPer>(lane, i, e);
        right[at.column][at.row] = static_cast<Wide>(get(value));
      }
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane)
    for (int i = 0; i < 4; ++i) {
      const fragment::At at = fragment::mma_c(lane, i);
      Acc& to = static_cast<Arguments*>(lanes[static_cast<size_t>(lane)])->d[i];
      Wide sum = static_cast<Wide>(to);
      for (int p = 0; p < kKept; ++p) {
        const int k = columns == nullptr
                          ? p
                          : (*columns)[static_cast<size_t>(at.row)][static_cast<size_t>(p)];
        sum += left[at.row][p] * right[at.column][k];
      }
      to = static_cast<Acc>(sum);
    }
}

template <class A, class B, class Acc>
void mma(Acc (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const char* name, Where where,
         const auto& get) {
  MmaArguments<A, B, 2, Acc> mine{d, a, b, 0};
  meet(kFullWarp, name, where, &mine,
       [&](const Lanes& lanes) { multiply_fragments<A, B, 2, Acc>(lanes, nullptr, get); });
}

}  // namespace emu

#define LAMINA_MMA_S32(name, A, B)                                                         \
  inline void name(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],        \
                   emu::Where where = emu::Where::current()) {                             \
    emu::mma<A, B>(d, a, b, #name, where, [](auto v) { return static_cast<int32_t>(v); }); \
  }
LAMINA_MMA_S32(mma_m16n8k32_s8, int8_t, int8_t)
LAMINA_MMA_S32(mma_m16n8k32_u8, uint8_t, uint8_t)
LAMINA_MMA_S32(mma_m16n8k32_s8u8, int8_t, uint8_t)
LAMINA_MMA_S32(mma_m16n8k32_u8s8, uint8_t, int8_t)
#undef LAMINA_MMA_S32

inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             emu::Where where = emu::Where::current()) {
  emu::mma<F16, F16>(d, a, b, "mma_m16n8k16_f16", where, [](F16 v) { return to_f32(v); });
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              emu::Where where = emu::Where::current()) {
  emu::mma<BF16, BF16>(d, a, b, "mma_m16n8k16_bf16", where, [](BF16 v) { return to_f32(v); });
}

}  // namespace lamina::dev
