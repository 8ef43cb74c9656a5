// Tensor maps, the descriptions of tensors for TMA.
#pragma once

#include "base/status.h"
#include "device/types.h"

namespace lamina::dev {

// Elements past the edges of the tensor are loaded as zeros and not stored.
Status make_tensor_map(const TensorMapSpec& spec, TensorMap& map);

// The next two functions serve both a GPU and the emulator. check_tensor_map refuses, with a message, the specs that
// cuTensorMapEncodeTiled would refuse (CUDA Driver API, "Tensor Map Object Management").
Status check_tensor_map(const TensorMapSpec& spec);

// Calls encode(spec, map), unless this thread has already encoded the same spec. A map depends on its spec alone: only
// kernels for compute capability 9.0 take maps, and a map does not hold the data at the address.
Status find_or_encode(const TensorMapSpec& spec, TensorMap& map,
                      Status (*encode)(const TensorMapSpec&, TensorMap&));

}  // namespace lamina::dev
