// Emulates ptx/wgmma.cuh. The last lane of a warp to arrive reads the operands and multiplies the warp's 16 rows. The
// sums stay hidden and the accumulators poisoned until wgmma_wait, which also checks that no thread touched an
// operand or an accumulator meanwhile. An array of registers must therefore live until the wait, and not only until
// the wgmma. docs/emulator.md lists the checks.
#pragma once

#include "device/emu/index.h"
#include "layout/matrix_descriptor.h"

namespace lamina::dev {
namespace emu {

class Warp;

// Elements of an operand.
enum class Element : uint8_t { kS8, kU8, kF16, kBf16 };

// The arguments that must be the same for all threads of a warpgroup.
struct Wgmma {
  int n;
  Element a_element, b_element;
  bool a_is_m_major = false, b_is_n_major = false;
  bool accumulate = false, a_in_registers = false;
  uint64_t a = 0, b = 0;   // descriptors; a is 0 for a register operand
  bool is_sparse = false;  // a holds two of four elements, and b has twice the k
  int selector = 0;        // of the metadata; kSelectorOfBytes for 8-bit elements

  bool operator==(const Wgmma&) const = default;
};

// d: n / 2 registers; frag_a: four, or nullptr; metadata: one if a is sparse, else nullptr.
void wgmma(const Wgmma& mine, void* d, const uint32_t* frag_a, const uint32_t* metadata,
           const char* name, Where where);
void wgmma_fence(Where where);
void wgmma_commit(Where where);
void wgmma_wait(int pending, Where where);
// Fails if this warp, whose last lane is about to end, has a wgmma that it has not waited for.
void check_no_wgmma_in_flight(const Warp& warp);

// Fails if encode() would lose bits.
uint64_t matrix_descriptor(const MatrixDescriptor& descriptor, Where where);

}  // namespace emu

inline uint64_t matrix_descriptor(uint32_t smem_address, int leading_bytes, int stride_bytes,
                                  Swizzle swizzle, emu::Where where = emu::Where::current()) {
  return emu::matrix_descriptor({smem_address, leading_bytes, stride_bytes, swizzle, 0}, where);
}

#define LAMINA_WGMMA_S32(name, A, B)                                                               \
  template <int kN>                                                                                \
  void name(int32_t (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate,                         \
            emu::Where where = emu::Where::current()) {                                            \
    static_assert(kN >= 8 && kN <= 256 && kN % (kN < 32 ? 8 : 16) == 0);                           \
    emu::wgmma({kN, emu::Element::A, emu::Element::B, false, false, accumulate, false, a, b}, d,   \
               nullptr, nullptr, #name, where);                                                    \
  }                                                                                                \
  template <int kN>                                                                                \
  void name(int32_t (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate,             \
            emu::Where where = emu::Where::current()) {                                            \
    static_assert(kN >= 8 && kN <= 256 && kN % (kN < 32 ? 8 : 16) == 0);                           \
    emu::wgmma({kN, emu::Element::A, emu::Element::B, false, false, accumulate, true, 0, b}, d, a, \
               nullptr, #name, where);                                                             \
  }
LAMINA_WGMMA_S32(wgmma_m64k32_s8, kS8, kS8)
LAMINA_WGMMA_S32(wgmma_m64k32_u8, kU8, kU8)
LAMINA_WGMMA_S32(wgmma_m64k32_s8u8, kS8, kU8)
LAMINA_WGMMA_S32(wgmma_m64k32_u8s8, kU8, kS8)
#undef LAMINA_WGMMA_S32

#define LAMINA_WGMMA_F32(name, E)                                                                 \
  template <int kN, bool kTransA = false, bool kTransB = false>                                   \
  void name(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate,                          \
            emu::Where where = emu::Where::current()) {                                           \
    static_assert(kN >= 8 && kN <= 256 && kN % 8 == 0);                                           \
    emu::wgmma({kN, emu::Element::E, emu::Element::E, kTransA, kTransB, accumulate, false, a, b}, \
               d, nullptr, nullptr, #name, where);                                                \
  }                                                                                               \
  template <int kN, bool kTransA = false, bool kTransB = false>                                   \
  void name(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate,              \
            emu::Where where = emu::Where::current()) {                                           \
    static_assert(kN >= 8 && kN <= 256 && kN % 8 == 0 && !kTransA);                               \
    emu::wgmma({kN, emu::Element::E, emu::Element::E, false, kTransB, accumulate, true, 0, b}, d, \
               a, nullptr, #name, where);                                                         \
  }
LAMINA_WGMMA_F32(wgmma_m64k16_f16, kF16)
LAMINA_WGMMA_F32(wgmma_m64k16_bf16, kBf16)
#undef LAMINA_WGMMA_F32

inline void wgmma_fence(emu::Where where = emu::Where::current()) { emu::wgmma_fence(where); }
inline void wgmma_commit(emu::Where where = emu::Where::current()) { emu::wgmma_commit(where); }
template <int kPending>
void wgmma_wait(emu::Where where = emu::Where::current()) {
  static_assert(kPending >= 0 && kPending <= 7);
  emu::wgmma_wait(kPending, where);
}

// A barrier for the device compiler; it does nothing here.
template <class T, int kCount>
void wgmma_fence_registers(T (&)[kCount]) {}

}  // namespace lamina::dev
