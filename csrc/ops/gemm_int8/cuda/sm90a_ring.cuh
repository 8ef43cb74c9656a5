// What the persistent kernels of sm_90a share: which tiles a block takes in turn, where its ring is, and how the blocks of
// a cluster tell each other.
#pragma once

#include "base/int_math.h"
#include "device/device.h"
#include "ops/gemm_int8/cuda/kernel.h"

namespace lamina::gemm_int8 {

struct Sm90aTile {
  int64_t m0, n0, first_step;
  int steps, split;
};

// Work in units of a tile a block of a cluster: tiles that are neighbours along n. Units are in the order of all
// token tiles of a band, then the next features, so that blocks that run together share weights and tokens in
// L2; splits of k last.
template <int kTokens, int kFeatures, int kCluster>
struct Sm90aSchedule {
  static constexpr int64_t kBand = 8;
  int64_t tiles_m, wide_n, all_steps, split_steps, units;

  // steps: of the ring, in k.
  constexpr Sm90aSchedule(int64_t m, int64_t n, int64_t steps, const Split& split)
      : tiles_m(ceil_div(m, kTokens)),
        wide_n(ceil_div(n, kFeatures * kCluster)),
        all_steps(steps),
        split_steps(split.steps),
        units(tiles_m * wide_n * split.count) {}

  LAMINA_DEVICE static int rank() { return kCluster > 1 ? dev::cluster_rank() : 0; }
  LAMINA_DEVICE static int64_t first() { return dev::block_index().x / kCluster; }
  LAMINA_DEVICE static int64_t stride() { return dev::grid_size().x / kCluster; }

  LAMINA_DEVICE Sm90aTile tile(int64_t unit) const {
    const int64_t split = unit / (tiles_m * wide_n), at = unit % (tiles_m * wide_n);
    const int64_t band = at / (kBand * wide_n), in_band = at % (kBand * wide_n);
    const int64_t left = tiles_m - band * kBand, height = left < kBand ? left : kBand;
    const int64_t first_step = split * split_steps, rest = all_steps - first_step;
    return {(band * kBand + in_band % height) * kTokens,
            (in_band / height * kCluster + rank()) * kFeatures, first_step,
            static_cast<int>(rest < split_steps ? rest : split_steps), static_cast<int>(split)};
  }
};

// Where the ring is: the parity flips each time round.
template <int kStages>
struct Sm90aCursor {
  int stage = 0, parity = 0;

  LAMINA_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

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

}  // namespace lamina::gemm_int8
