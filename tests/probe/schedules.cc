// cuda.schedule: the tiles of the persistent kernels in their order.
#include <array>
#include <tuple>
#include <vector>

#include "block/tile_order.cuh"
#include "probe.h"

namespace lamina::probe {
namespace {

// (first token, first feature, first step, steps, split)
using Tile = std::tuple<int64_t, int64_t, int64_t, int, int>;
using Units = std::vector<std::vector<Tile>>;

template <int kTokens, int kFeatures, int kCluster>
Units units_of(int64_t m, int64_t n, int64_t steps, int splits, int split_steps) {
  const TileOrder<kTokens, kFeatures, kCluster> order(m, n, steps, splits, split_steps);
  Units units(static_cast<size_t>(order.units));
  for (int64_t unit = 0; unit < order.units; ++unit)
    for (int rank = 0; rank < kCluster; ++rank) {
      const OutputTile tile = order.tile(unit, rank);
      units[static_cast<size_t>(unit)].emplace_back(tile.m0, tile.n0, tile.first_step, tile.steps,
                                                    tile.split);
    }
  return units;
}

struct Entry {
  int tokens, features, cluster;
  Units (*units)(int64_t, int64_t, int64_t, int, int);
};

template <int kTokens>
constexpr std::array<Entry, 4> entries() {
  return {{{kTokens, 64, 1, &units_of<kTokens, 64, 1>},
           {kTokens, 64, 2, &units_of<kTokens, 64, 2>},
           {kTokens, 128, 1, &units_of<kTokens, 128, 1>},
           {kTokens, 128, 2, &units_of<kTokens, 128, 2>}}};
}

Units schedule(int tokens, int features, int cluster, int64_t m, int64_t n, int64_t steps,
               int splits, int split_steps) {
  for (const auto& some :
       {entries<16>(), entries<32>(), entries<64>(), entries<128>(), entries<256>()})
    for (const Entry& entry : some)
      if (std::tuple(entry.tokens, entry.features, entry.cluster) ==
          std::tuple(tokens, features, cluster))
        return entry.units(m, n, steps, splits, split_steps);
  throw std::invalid_argument("tests/probe/schedules.cc has no TileOrder of this tile and cluster");
}

}  // namespace

void add_schedules(py::module_& module) {
  py::module_ cuda = module.attr("cuda");
  cuda.def("schedule", &schedule, py::arg("tokens"), py::arg("features"), py::arg("cluster"),
           py::arg("m"), py::arg("n"), py::arg("steps"), py::arg("splits"), py::arg("split_steps"),
           "For each unit, in order, the tile of each block of a cluster: (first token, first "
           "feature, first step, steps, split)");
}

}  // namespace lamina::probe
