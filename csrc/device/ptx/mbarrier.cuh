// Barriers in shared memory that count arrivals and the bytes of bulk copies, and the fences that go with
// them. A barrier passes from phase to phase: a phase ends when all its arrivals have come and no byte is
// missing. Emulator: emu/mbarrier.h
#pragma once

#include "device/ptx/index.cuh"
#include "device/types.h"

namespace lamina::dev {

// mbarrier.init.shared::cta.b64 [barrier], arrivals;                      PTX ISA 7.0, sm_80
// Begins phase 0. Each phase takes `arrivals` arrivals, 1 to 2^20 - 1. Other threads may use the barrier only after a
// barrier of the block, copies only after fence_mbarrier_init().
LAMINA_DEVICE void mbarrier_init(MBarrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals)
               : "memory");
}

// mbarrier.arrive.release.cta.shared::cta.b64 _, [barrier];               PTX ISA 8.0, sm_90
// This thread's earlier accesses are visible to threads that wait for the phase.
LAMINA_DEVICE void mbarrier_arrive(MBarrier* barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier))
               : "memory");
}

// mapa.shared::cluster.u32 d, barrier, rank;                              PTX ISA 7.8, sm_90
// mbarrier.arrive.release.cta.shared::cluster.b64 _, [d];                 PTX ISA 8.0, sm_90
// Arrives at the barrier in the same place of another block of the cluster, or of this block. The arrival says that a
// stage is free and makes no data visible to the other block: that would take a release with the cluster's scope,
// which waits for all of this thread's writes.
LAMINA_DEVICE void mbarrier_arrive_remote(MBarrier* barrier, int rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cta.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(smem_address(barrier)),
      "r"(rank)
      : "memory");
}

// mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [barrier], bytes;        PTX ISA 8.0, sm_90
// The current phase does not end before copies have delivered `bytes` more bytes. At most 2^20 - 1 may be missing at
// a time.
LAMINA_DEVICE void mbarrier_expect_tx(MBarrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)),
      "r"(bytes)
      : "memory");
}

// mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [barrier], bytes;   PTX ISA 8.0, sm_90
// Does mbarrier_expect_tx(), then mbarrier_arrive().
LAMINA_DEVICE void mbarrier_arrive_expect_tx(MBarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   smem_address(barrier)),
               "r"(bytes)
               : "memory");
}

// mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [barrier], parity;   PTX ISA 8.0, sm_90
// Whether the phase of this parity, the current or the previous phase, is over; phase 0 is even. May suspend the
// thread for a while and then still return false.
LAMINA_DEVICE bool mbarrier_try_wait(MBarrier* barrier, int parity) {
  uint32_t is_over;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n"
      "}"
      : "=r"(is_over)
      : "r"(smem_address(barrier)), "r"(parity)
      : "memory");
  return is_over != 0;
}
LAMINA_DEVICE void mbarrier_wait(MBarrier* barrier, int parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// fence.mbarrier_init.release.cluster;                                    PTX ISA 8.0, sm_90
// Makes this thread's mbarrier_init() visible to copies and, after a cluster barrier, to other blocks.
LAMINA_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// fence.proxy.async.shared::cta;                                          PTX ISA 8.0, sm_90
// Orders this thread's accesses of shared memory before those of later bulk copies and wgmma: its own and, after a
// barrier, those of other threads.
LAMINA_DEVICE void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace lamina::dev
