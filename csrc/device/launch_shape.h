// Which launches CUDA would refuse: the same message from a GPU and from the twin.
#pragma once

#include "base/status.h"
#include "device/types.h"

namespace lamina::dev {

inline constexpr int kMaxGridYZ = 65535;
inline constexpr int kMaxCluster = 8;  // what every GPU with clusters can do

inline Status check_shape(const char* kernel, const LaunchShape& shape) {
  const Index3 grid = shape.grid;
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0 || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ)
    return Status::error(kernel, ": a grid of ", grid.x, " x ", grid.y, " x ", grid.z,
                         " blocks; 1 to 2^31 - 1 x 65535 x 65535 are possible");
  if (shape.cluster < 1 || shape.cluster > kMaxCluster || grid.x % shape.cluster != 0)
    return Status::error(kernel, ": clusters of ", shape.cluster, " blocks in a grid ", grid.x,
                         " wide; 1 to ", kMaxCluster, " that divide it are possible");
  return Status::ok();
}

}  // namespace lamina::dev
