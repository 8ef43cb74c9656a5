// How the blocks of a cluster tell each other that they have arrived; a cluster may be one block.
#pragma once

#include "device/device.h"

namespace lamina {

// A warp's arrival at the barrier of every block of the cluster: each fetches for this one too.
template <int kCluster>
LAMINA_DEVICE void arrive_in_cluster(dev::MBarrier* barrier) {
  dev::warp_sync();  // the lanes that arrive answer for what all have read
  if constexpr (kCluster > 1) {
    if (dev::lane() < kCluster) dev::mbarrier_arrive_remote(barrier, dev::lane());
  } else {
    if (dev::lane() == 0) dev::mbarrier_arrive(barrier);
  }
}

template <int kCluster>
LAMINA_DEVICE void sync_cluster() {
  if constexpr (kCluster > 1) {
    dev::cluster_sync();
  } else {
    dev::block_sync();
  }
}

}  // namespace lamina
