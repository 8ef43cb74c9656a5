// Working memory of a thread, kept between calls. Its size is half of L2, or the need of one tile of rows if that is
// more (176 MiB for k = 2^24 with AVX2).
#pragma once

#include <cstdint>

namespace lamina {

// At least `bytes` bytes, 64-byte aligned, valid until this thread's next call. Throws std::bad_alloc.
void* thread_scratch(int64_t bytes);

}  // namespace lamina
