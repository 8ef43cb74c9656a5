// Memory that is read as one long stream, such as a packed weight, reads 3 to 5 % faster on huge pages
// (2026-11, Xeon, 1 x 4096 x 4096): fewer translations miss. Where Linux leaves the choice to programs
// (transparent huge pages set to "madvise", as on Ubuntu) this asks for them.
#pragma once

#include <cstdint>

namespace lamina {

// Advice for fresh memory [data, data + bytes), before it is written; never fails. Only whole huge
// pages inside it count, so the memory does not grow.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace lamina
