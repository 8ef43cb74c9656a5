// With _FORTIFY_SOURCE, longjmp would report a switch to another stack as an error.
#undef _FORTIFY_SOURCE

#include "device/emu/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

namespace lamina::dev::emu {
namespace {

constexpr size_t kStackBytes = size_t{256} << 10;

// Stacks are reused. An access to the page below a stack faults.
std::vector<void*>& free_stacks() {
  static thread_local std::vector<void*> stacks;
  return stacks;
}

void* take_stack() {
  std::vector<void*>& stacks = free_stacks();
  if (!stacks.empty()) {
    void* const stack = stacks.back();
    stacks.pop_back();
    return stack;
  }
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* const memory = mmap(nullptr, kStackBytes + guard, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  (void)mprotect(memory, guard, PROT_NONE);
  return static_cast<std::byte*>(memory) + guard;
}

// makecontext can pass only ints, so these pass the pointers.
thread_local void (*starting)() = nullptr;
thread_local Context* starting_at = nullptr;
#if defined(LAMINA_ASAN_FIBERS)
thread_local Context* arriving_from = nullptr;
#endif

}  // namespace

std::unique_ptr<std::byte[], void (*)(std::byte*)> allocate_smem(int bytes, int poison) {
  constexpr size_t kAlignment = 1024;
  const size_t size = static_cast<size_t>(bytes);
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, size ? size : 1) != 0) throw std::bad_alloc();
  std::memset(memory, poison, size);
  return {static_cast<std::byte*>(memory), [](std::byte* at) { std::free(at); }};
}

bool Context::owns(const void* at) const {
  const std::byte *const byte = static_cast<const std::byte*>(at),
                         *const stack = static_cast<const std::byte*>(stack_);
  return byte >= stack && byte < stack + kStackBytes;
}

Context::~Context() {
  if (stack_) free_stacks().push_back(stack_);
}

void Context::start(void (*entry)()) {
  stack_ = take_stack();
  entry_ = entry;
  getcontext(&first_);
  first_.uc_stack.ss_sp = stack_;
  first_.uc_stack.ss_size = kStackBytes;
  first_.uc_link = nullptr;
  makecontext(
      &first_,
      +[] {
        arrive(*starting_at);
        starting();
      },
      0);
#if defined(LAMINA_ASAN_FIBERS)
  bottom_ = stack_;
  size_ = kStackBytes;
#endif
}

#if defined(LAMINA_ASAN_FIBERS)

void Context::arrive(Context& here) {
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(here.fake_stack_, &bottom, &size);
  if (arriving_from && !arriving_from->stack_) {
    arriving_from->bottom_ = bottom;
    arriving_from->size_ = size;
  }
}

void switch_to(Context& from, Context& to) {
  starting = to.entry_;
  starting_at = &to;
  arriving_from = &from;
  to.has_started_ = true;
  __sanitizer_start_switch_fiber(&from.fake_stack_, to.bottom_, to.size_);
  swapcontext(&from.first_, &to.first_);
  Context::arrive(from);
}

void leave_for(Context& from, Context& to) {
  arriving_from = &from;
  __sanitizer_start_switch_fiber(nullptr, to.bottom_, to.size_);
  swapcontext(&from.first_, &to.first_);
  std::abort();
}

#else

void Context::arrive(Context&) {}

void switch_to(Context& from, Context& to) {
  if (_setjmp(from.jump_) != 0) return;
  if (to.has_started_ || !to.entry_) _longjmp(to.jump_, 1);
  to.has_started_ = true;
  starting = to.entry_;
  starting_at = &to;
  setcontext(&to.first_);
}

void leave_for(Context&, Context& to) { _longjmp(to.jump_, 1); }

#endif

}  // namespace lamina::dev::emu
