// Blocks that run together and reach each other's shared memory. Emulator: emu/cluster.h
#pragma once

#include "device/ptx/copy.cuh"
#include "device/ptx/index.cuh"
#include "device/types.h"

namespace lamina::dev {

// mov.u32 d, %cluster_ctarank;                                            PTX ISA 7.8, sm_90
// The rank of this block in its cluster: block_index().x % cluster_size().
LAMINA_DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// mov.u32 d, %cluster_nctarank;                                           PTX ISA 7.8, sm_90
LAMINA_DEVICE int cluster_size() {
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// barrier.cluster.arrive.release.aligned;                                 PTX ISA 8.0, sm_90
// The barrier of all threads of the cluster's blocks: each thread arrives, then waits. Warps call it with all lanes.
LAMINA_DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

// barrier.cluster.wait.acquire.aligned;                                   PTX ISA 8.0, sm_90
// Waits until all threads that have not ended have arrived; their earlier accesses are then visible. Before the first
// cluster barrier another block may not have started, and after the last it may have ended; its shared memory exists
// only in between.
LAMINA_DEVICE void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

LAMINA_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

namespace detail {

// mapa.shared::cluster.u32 d, smem, rank;                                 PTX ISA 7.8, sm_90
// The address of the same place in the shared memory of another block.
LAMINA_DEVICE uint32_t cluster_address(const void* smem, int rank) {
  uint32_t d;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(d) : "r"(dev::smem_address(smem)), "r"(rank));
  return d;
}

LAMINA_DEVICE void ld_cluster(uint32_t at, uint32_t& d) {
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(d) : "r"(at) : "memory");
}
LAMINA_DEVICE void ld_cluster(uint32_t at, uint64_t& d) {
  asm volatile("ld.shared::cluster.u64 %0, [%1];" : "=l"(d) : "r"(at) : "memory");
}
LAMINA_DEVICE void ld_cluster(uint32_t at, U32x4& d) {
  asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d.x[0]), "=r"(d.x[1]), "=r"(d.x[2]), "=r"(d.x[3])
               : "r"(at)
               : "memory");
}
LAMINA_DEVICE void st_cluster(uint32_t at, uint32_t d) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(at), "r"(d) : "memory");
}
LAMINA_DEVICE void st_cluster(uint32_t at, uint64_t d) {
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(at), "l"(d) : "memory");
}
LAMINA_DEVICE void st_cluster(uint32_t at, const U32x4& d) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(d.x[0]),
               "r"(d.x[1]), "r"(d.x[2]), "r"(d.x[3])
               : "memory");
}

}  // namespace detail

// ld.shared::cluster{.v4}.u{32,64} d, [from of rank];                     PTX ISA 7.8, sm_90
// V has 4, 8 or 16 bytes, naturally aligned. `from` points into this block's own shared memory.
template <class V>
LAMINA_DEVICE V load_cluster(const V* from, int rank) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  detail::RegistersOf<V> d;
  detail::ld_cluster(detail::cluster_address(from, rank), d);
  return std::bit_cast<V>(d);
}

// st.shared::cluster{.v4}.u{32,64} [to of rank], value;                   PTX ISA 7.8, sm_90
template <class V>
LAMINA_DEVICE void store_cluster(V* to, V value, int rank) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8 || sizeof(V) == 16);
  detail::st_cluster(detail::cluster_address(to, rank),
                     std::bit_cast<detail::RegistersOf<V>>(value));
}

}  // namespace lamina::dev
