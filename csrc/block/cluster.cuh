// Barriers and loads of the blocks of a cluster; a cluster may be one block.
#pragma once

#include "device/device.h"

namespace lamina {

// One arrival of this warp at the same barrier in every block of the cluster: each block writes to the shared memory
// of all, so each must know when this warp has read its stage.
template <int kCluster>
LAMINA_DEVICE void arrive_in_cluster(dev::MBarrier* barrier) {
  dev::warp_sync();  // one lane arrives for the reads of all lanes
  if constexpr (kCluster > 1) {
    if (dev::lane() < kCluster) dev::mbarrier_arrive_remote(barrier, dev::lane());
  } else {
    if (dev::lane() == 0) dev::mbarrier_arrive(barrier);
  }
}

// One thread loads a box of a matrix into the shared memory of every block of the cluster.
template <int kCluster>
LAMINA_DEVICE void load_for_cluster(std::byte* smem, const dev::TensorMap* map, dev::MBarrier* full,
                                    const int32_t (&at)[2]) {
  if constexpr (kCluster > 1) {
    dev::tma_load_multicast<2>(smem, map, full, at, (1u << kCluster) - 1);
  } else {
    dev::tma_load<2>(smem, map, full, at);
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
