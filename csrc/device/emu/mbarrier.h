// Emulates ptx/mbarrier.cuh. For the async proxy a barrier counts as initialised only after the initialising thread
// has fenced; for another thread, only after the initialisation is ordered before that thread's access. A wait for a
// phase orders the copies that the phase counts, and the accesses before all arrivals of that phase and of earlier
// phases. Scopes are not checked: an arrival at another block's barrier orders memory too.
#pragma once

#include "device/emu/executor.h"

namespace lamina::dev {
namespace emu {

inline constexpr int kOwnRank = -1;

void init_mbarrier(MBarrier* barrier, int arrivals, Where where);
// Does expect_tx of `bytes`, then `arrivals` arrivals, at the barrier in the same place of a block of the cluster.
void signal_mbarrier(MBarrier* barrier, int rank, int bytes, int arrivals, const char* name,
                     Where where);
// Hardware's try_wait gives up after a time of its own choosing. This function sometimes gives up after others have
// run.
bool try_wait_mbarrier(MBarrier* barrier, int parity, Where where);
void wait_mbarrier(MBarrier* barrier, int parity, Where where);
void fence_mbarriers();
void fence_async();

}  // namespace emu

inline void mbarrier_init(MBarrier* barrier, int arrivals,
                          emu::Where where = emu::Where::current()) {
  emu::init_mbarrier(barrier, arrivals, where);
}

inline void mbarrier_arrive(MBarrier* barrier, emu::Where where = emu::Where::current()) {
  emu::signal_mbarrier(barrier, emu::kOwnRank, 0, 1, "mbarrier_arrive", where);
}
inline void mbarrier_arrive_remote(MBarrier* barrier, int rank,
                                   emu::Where where = emu::Where::current()) {
  emu::signal_mbarrier(barrier, rank, 0, 1, "mbarrier_arrive_remote", where);
}
inline void mbarrier_expect_tx(MBarrier* barrier, int bytes,
                               emu::Where where = emu::Where::current()) {
  emu::signal_mbarrier(barrier, emu::kOwnRank, bytes, 0, "mbarrier_expect_tx", where);
}
inline void mbarrier_arrive_expect_tx(MBarrier* barrier, int bytes,
                                      emu::Where where = emu::Where::current()) {
  emu::signal_mbarrier(barrier, emu::kOwnRank, bytes, 1, "mbarrier_arrive_expect_tx", where);
}

inline bool mbarrier_try_wait(MBarrier* barrier, int parity,
                              emu::Where where = emu::Where::current()) {
  return emu::try_wait_mbarrier(barrier, parity, where);
}
inline void mbarrier_wait(MBarrier* barrier, int parity, emu::Where where = emu::Where::current()) {
  emu::wait_mbarrier(barrier, parity, where);
}

inline void fence_mbarrier_init() { emu::fence_mbarriers(); }
inline void fence_proxy_async() { emu::fence_async(); }

}  // namespace lamina::dev
