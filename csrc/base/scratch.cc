#include "base/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

#include "base/int_math.h"

namespace lamina {

void* thread_scratch(int64_t bytes) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  static thread_local std::unique_ptr<void, Free> memory;
  static thread_local int64_t size = 0;
  if (bytes > size) {
    memory.reset();
    size = 0;
    const int64_t rounded = round_up(bytes, 4096);
    memory.reset(std::aligned_alloc(4096, static_cast<size_t>(rounded)));
    if (!memory) throw std::bad_alloc();
    size = rounded;
  }
  return memory.get();
}

}  // namespace lamina
