#include "base/huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>

#include "base/int_math.h"
#endif

namespace lamina {

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t kHugePage = int64_t{2} << 20;
  const int64_t address = reinterpret_cast<intptr_t>(data);
  const int64_t begin = round_up(address, kHugePage);
  const int64_t end = (address + bytes) / kHugePage * kHugePage;
  if (begin < end)
    (void)madvise(static_cast<char*>(data) + (begin - address), static_cast<size_t>(end - begin),
                  MADV_HUGEPAGE);
#endif
}

}  // namespace lamina
