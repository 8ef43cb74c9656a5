// Refuses the launches that CUDA would refuse, with the same message on a GPU and on the emulator.
#pragma once

#include "base/status.h"
#include "device/types.h"

namespace lamina::dev {

inline constexpr int kMaxGridYZ = 65535;
inline constexpr int kMaxThreads = 1024;          // threads of a block
inline constexpr int kMaxSmemBytes = 227 * 1024;  // of a block, on the GPUs with the most
inline constexpr int kMaxCluster = 8;             // possible on every GPU with clusters

Status check_shape(const char* kernel, const LaunchShape& shape, int threads);

}  // namespace lamina::dev
