// Asks for huge pages where Linux leaves the choice to programs (transparent huge pages set to "madvise", as on
// Ubuntu). Memory that is read as one long stream, such as a packed weight, reads 3 to 5 % faster on huge pages,
// because fewer address translations miss (2026-11, Xeon, 1 x 4096 x 4096).
#pragma once

#include <cstdint>

namespace lamina {

// Call it on fresh memory [data, data + bytes), before the first write; the call never fails. It concerns only whole
// huge pages inside the memory, so the memory does not grow.
void advise_huge_pages(void* data, int64_t bytes);

}  // namespace lamina
