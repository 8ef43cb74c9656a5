// torch's current CUDA stream. Only libtorch_cuda knows the stream, and lamina links libtorch_cpu alone.
#pragma once

#include <cstdint>

namespace lamina::interop {

// The cudaStream_t on which torch would run this thread's kernels on `device`. Throws std::runtime_error
// if this process has no libtorch_cuda, or if torch refuses the device.
void* current_cuda_stream(int64_t device);

}  // namespace lamina::interop
