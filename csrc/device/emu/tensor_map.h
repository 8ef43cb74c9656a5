// Emulates ptx/tensor_map.cuh: the map is the spec itself.
#pragma once

#include "base/status.h"
#include "device/types.h"

namespace lamina::dev {

// Elements past the edges of the tensor are loaded as zeros and not stored.
Status make_tensor_map(const TensorMapSpec& spec, TensorMap& map);

}  // namespace lamina::dev
