// Working memory of a thread, kept between calls: at most a few MiB, because panels are sized to
// L2.
#pragma once

#include <cstdint>

namespace lamina {

// At least `bytes` bytes, 64-byte aligned, valid until this thread's next call. Throws
// std::bad_alloc.
void* thread_scratch(int64_t bytes);

}  // namespace lamina
