// The tile scheduler: the output tiles that a persistent block computes, in order.
#pragma once

#include "base/int_math.h"
#include "device/device.h"

namespace lamina {

struct OutputTile {
  int64_t m0, n0, first_step;
  int steps, split;
};

// A unit of work is one tile for each block of a cluster; the tiles of a unit are neighbours along n. The fastest
// index of a unit is its token tile within a band of kBand token tiles, then come the features, the bands, and the
// splits of k. Blocks that run at the same time therefore share weights and tokens in L2.
template <int kTokens, int kFeatures, int kCluster>
struct TileOrder {
  static constexpr int64_t kBand = 8;
  int64_t tiles_m, wide_n, all_steps, split_steps, units;

  // steps: ring steps over all of k; each of the `splits` splits takes split_steps of them.
  constexpr TileOrder(int64_t m, int64_t n, int64_t steps, int splits, int split_steps)
      : tiles_m(ceil_div(m, kTokens)),
        wide_n(ceil_div(n, kFeatures * kCluster)),
        all_steps(steps),
        split_steps(split_steps),
        units(tiles_m * wide_n * splits) {}

  // The blocks to launch where at most max_blocks run at the same time.
  constexpr int blocks(int64_t max_blocks) const {
    const int64_t clusters = max_blocks / kCluster;
    return static_cast<int>(units < clusters ? units : clusters) * kCluster;
  }

  LAMINA_DEVICE static int rank() { return kCluster > 1 ? dev::cluster_rank() : 0; }
  LAMINA_DEVICE static int64_t first() { return dev::block_index().x / kCluster; }
  LAMINA_DEVICE static int64_t stride() { return dev::grid_size().x / kCluster; }

  LAMINA_DEVICE OutputTile tile(int64_t unit) const { return tile(unit, rank()); }
  constexpr OutputTile tile(int64_t unit, int rank) const {
    const int64_t split = unit / (tiles_m * wide_n), at = unit % (tiles_m * wide_n);
    const int64_t band = at / (kBand * wide_n), in_band = at % (kBand * wide_n);
    const int64_t left = tiles_m - band * kBand, height = left < kBand ? left : kBand;
    const int64_t first_step = split * split_steps, rest = all_steps - first_step;
    return {(band * kBand + in_band % height) * kTokens,
            (in_band / height * kCluster + rank) * kFeatures, first_step,
            static_cast<int>(rest < split_steps ? rest : split_steps), static_cast<int>(split)};
  }
};

}  // namespace lamina
