// The CUDA stream that torch is on. libtorch_cuda alone knows it, and lamina needs libtorch_cpu only.
#pragma once

#include <cstdint>

namespace lamina::interop {

// The cudaStream_t on which torch's own kernels of this thread would run on `device`. Raises a
// RuntimeError where this process has no libtorch_cuda, or where torch refuses the device.
void* current_cuda_stream(int64_t device);

}  // namespace lamina::interop
