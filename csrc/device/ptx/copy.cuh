// Loads, stores and asynchronous copies. Pointers are generic; the names of functions and arguments say the space
// that they must point into. Emulator: emu/copy.h
#pragma once

#include <bit>

#include "device/ptx/index.cuh"
#include "device/types.h"

namespace lamina::dev {
namespace detail {

using dev::smem_address;
LAMINA_DEVICE uint64_t gmem_address(const void* gmem) { return __cvta_generic_to_global(gmem); }

// The register type of a value of this many bytes.
template <size_t kBytes>
struct Registers;
template <>
struct Registers<1> {
  using Type = uint8_t;
};
template <>
struct Registers<2> {
  using Type = uint16_t;
};
template <>
struct Registers<4> {
  using Type = uint32_t;
};
template <>
struct Registers<8> {
  using Type = uint64_t;
};
template <>
struct Registers<16> {
  using Type = U32x4;
};
template <class V>
using RegistersOf = typename Registers<sizeof(V)>::Type;

// Defines name(address, d) for each width, one instruction each. A byte takes a 16-bit register.
#define LAMINA_LOAD(name, op, Address, address_register)                             \
  LAMINA_DEVICE void name(Address at, uint16_t& d) {                                 \
    asm volatile(op ".u16 %0, [%1];" : "=h"(d) : address_register(at) : "memory");   \
  }                                                                                  \
  LAMINA_DEVICE void name(Address at, uint8_t& d) {                                  \
    uint16_t wide;                                                                   \
    asm volatile(op ".u8 %0, [%1];" : "=h"(wide) : address_register(at) : "memory"); \
    d = static_cast<uint8_t>(wide);                                                  \
  }                                                                                  \
  LAMINA_DEVICE void name(Address at, uint32_t& d) {                                 \
    asm volatile(op ".u32 %0, [%1];" : "=r"(d) : address_register(at) : "memory");   \
  }                                                                                  \
  LAMINA_DEVICE void name(Address at, uint64_t& d) {                                 \
    asm volatile(op ".u64 %0, [%1];" : "=l"(d) : address_register(at) : "memory");   \
  }                                                                                  \
  LAMINA_DEVICE void name(Address at, U32x4& d) {                                    \
    asm volatile(op ".v4.u32 {%0, %1, %2, %3}, [%4];"                                \
                 : "=r"(d.x[0]), "=r"(d.x[1]), "=r"(d.x[2]), "=r"(d.x[3])            \
                 : address_register(at)                                              \
                 : "memory");                                                        \
  }
LAMINA_LOAD(ld_global, "ld.global", uint64_t, "l")
LAMINA_LOAD(ld_global_stream, "ld.global.cs", uint64_t, "l")
LAMINA_LOAD(ld_shared, "ld.shared", uint32_t, "r")
#undef LAMINA_LOAD

#define LAMINA_STORE(name, op, Address, address_register)                                  \
  LAMINA_DEVICE void name(Address at, uint16_t d) {                                        \
    asm volatile(op ".u16 [%0], %1;" ::address_register(at), "h"(d) : "memory");           \
  }                                                                                        \
  LAMINA_DEVICE void name(Address at, uint8_t d) {                                         \
    asm volatile(op ".u8 [%0], %1;" ::address_register(at), "h"(uint16_t{d}) : "memory");  \
  }                                                                                        \
  LAMINA_DEVICE void name(Address at, uint32_t d) {                                        \
    asm volatile(op ".u32 [%0], %1;" ::address_register(at), "r"(d) : "memory");           \
  }                                                                                        \
  LAMINA_DEVICE void name(Address at, uint64_t d) {                                        \
    asm volatile(op ".u64 [%0], %1;" ::address_register(at), "l"(d) : "memory");           \
  }                                                                                        \
  LAMINA_DEVICE void name(Address at, const U32x4& d) {                                    \
    asm volatile(op ".v4.u32 [%0], {%1, %2, %3, %4};" ::address_register(at), "r"(d.x[0]), \
                 "r"(d.x[1]), "r"(d.x[2]), "r"(d.x[3])                                     \
                 : "memory");                                                              \
  }
LAMINA_STORE(st_global, "st.global", uint64_t, "l")
LAMINA_STORE(st_shared, "st.shared", uint32_t, "r")
#undef LAMINA_STORE

}  // namespace detail

// cp.async.{ca,cg}.shared.global [smem], [gmem], kBytes, valid_bytes;     PTX ISA 7.0, sm_80
// Starts a copy of valid_bytes and fills the rest of kBytes with zeros; both addresses are
// multiples of kBytes. .cg, which bypasses L1, exists for 16 bytes only.
template <int kBytes>
LAMINA_DEVICE void cp_async(void* smem, const void* gmem, int valid_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(detail::smem_address(smem)),
                 "l"(detail::gmem_address(gmem)), "r"(valid_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(detail::smem_address(smem)),
                 "l"(detail::gmem_address(gmem)), "n"(kBytes), "r"(valid_bytes)
                 : "memory");
  }
}

// cp.async.commit_group;                                                  PTX ISA 7.0, sm_80
// Makes a group of this thread's copies since the last commit; the group may be empty.
LAMINA_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// cp.async.wait_group kPending;                                           PTX ISA 7.0, sm_80
// Waits for all but the kPending newest groups of this thread. Other threads need a barrier to see the data.
template <int kPending>
LAMINA_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ldmatrix.sync.aligned.m8n8.x{1,2,4}{.trans}.shared.b16 d, [smem_row];   PTX ISA 6.5, sm_75
// Loads kCount 8 x 8 matrices of 16-bit elements. Lane l < 8 * kCount passes the address of row l % 8 of matrix l /
// 8, a multiple of 16; the addresses of other lanes are not used. d[i]: layout/fragment.h. All 32 lanes call it.
#define LAMINA_LDMATRIX(name, trans)                                                           \
  template <int kCount>                                                                        \
  LAMINA_DEVICE void name(uint32_t (&d)[kCount], const void* smem_row) {                       \
    static_assert(kCount == 1 || kCount == 2 || kCount == 4);                                  \
    const uint32_t at = detail::smem_address(smem_row);                                        \
    if constexpr (kCount == 1) {                                                               \
      asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                   : "=r"(d[0])                                                                \
                   : "r"(at)                                                                   \
                   : "memory");                                                                \
    } else if constexpr (kCount == 2) {                                                        \
      asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                   : "=r"(d[0]), "=r"(d[1])                                                    \
                   : "r"(at)                                                                   \
                   : "memory");                                                                \
    } else {                                                                                   \
      asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                   : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])                            \
                   : "r"(at)                                                                   \
                   : "memory");                                                                \
    }                                                                                          \
  }
LAMINA_LDMATRIX(ldmatrix, "")
LAMINA_LDMATRIX(ldmatrix_trans, ".trans")
#undef LAMINA_LDMATRIX

// stmatrix.sync.aligned.m8n8.x{1,2,4}{.trans}.shared.b16 [smem_row], d;   PTX ISA 7.8, sm_90
// Stores what ldmatrix loads, with the same addresses and fragments.
#define LAMINA_STMATRIX(name, trans)                                                              \
  template <int kCount>                                                                           \
  LAMINA_DEVICE void name(void* smem_row, const uint32_t (&d)[kCount]) {                          \
    static_assert(kCount == 1 || kCount == 2 || kCount == 4);                                     \
    const uint32_t at = detail::smem_address(smem_row);                                           \
    if constexpr (kCount == 1) {                                                                  \
      asm volatile("stmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 [%0], {%1};" ::"r"(at),     \
                   "r"(d[0])                                                                      \
                   : "memory");                                                                   \
    } else if constexpr (kCount == 2) {                                                           \
      asm volatile("stmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 [%0], {%1, %2};" ::"r"(at), \
                   "r"(d[0]), "r"(d[1])                                                           \
                   : "memory");                                                                   \
    } else {                                                                                      \
      asm volatile("stmatrix.sync.aligned.m8n8.x4" trans                                          \
                   ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at),                               \
                   "r"(d[0]), "r"(d[1]), "r"(d[2]), "r"(d[3])                                     \
                   : "memory");                                                                   \
    }                                                                                             \
  }
LAMINA_STMATRIX(stmatrix, "")
LAMINA_STMATRIX(stmatrix_trans, ".trans")
#undef LAMINA_STMATRIX

// ld.global{.cs}{.v4}.u{8,16,32,64} d, [from];                            PTX ISA 2.0, sm_20
// V has 1, 2, 4, 8 or 16 bytes, naturally aligned. kStream is .cs, evict-first in L1 and L2;
// .L2::evict_first would need sm_100 and vectors of 32 bytes.
template <class V, Cache kCache = Cache::kDefault>
LAMINA_DEVICE V load_global(const V* from) {
  detail::RegistersOf<V> d;
  if constexpr (kCache == Cache::kStream) {
    detail::ld_global_stream(detail::gmem_address(from), d);
  } else {
    detail::ld_global(detail::gmem_address(from), d);
  }
  return std::bit_cast<V>(d);
}

// st.global{.v4}.u{8,16,32,64} [to], value;                               PTX ISA 1.0, sm_10
template <class V>
LAMINA_DEVICE void store_global(V* to, V value) {
  detail::st_global(detail::gmem_address(to), std::bit_cast<detail::RegistersOf<V>>(value));
}

// ld.shared{.v4}.u{8,16,32,64} d, [from];                                 PTX ISA 1.0, sm_10
template <class V>
LAMINA_DEVICE V load_shared(const V* from) {
  detail::RegistersOf<V> d;
  detail::ld_shared(detail::smem_address(from), d);
  return std::bit_cast<V>(d);
}

// st.shared{.v4}.u{8,16,32,64} [to], value;                               PTX ISA 1.0, sm_10
template <class V>
LAMINA_DEVICE void store_shared(V* to, V value) {
  detail::st_shared(detail::smem_address(to), std::bit_cast<detail::RegistersOf<V>>(value));
}

}  // namespace lamina::dev
