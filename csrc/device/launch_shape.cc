#include "device/launch_shape.h"

namespace lamina::dev {

Status check_shape(const char* kernel, const LaunchShape& shape, int threads) {
  const Index3 grid = shape.grid;
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0 || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ)
    return Status::error(kernel, ": a grid of ", grid.x, " x ", grid.y, " x ", grid.z,
                         " blocks; 1 to 2^31 - 1 x 65535 x 65535 are possible");
  if (shape.cluster < 1 || shape.cluster > kMaxCluster || grid.x % shape.cluster != 0)
    return Status::error(kernel, ": clusters of ", shape.cluster, " blocks in a grid ", grid.x,
                         " wide; 1 to ", kMaxCluster, " that divide it are possible");
  if (threads < 1 || threads > kMaxThreads)
    return Status::error(kernel, ": ", threads, " threads a block; 1 to ", kMaxThreads,
                         " are possible");
  if (shape.smem_bytes < 0 || shape.smem_bytes > kMaxSmemBytes)
    return Status::error(kernel, ": ", shape.smem_bytes, " bytes of shared memory a block; 0 to ",
                         kMaxSmemBytes, " are possible");
  return Status::ok();
}

}  // namespace lamina::dev
