// Stacks of their own on one host thread. Switching is _setjmp and _longjmp, which stay in user space
// where swapcontext saves the signal mask with a system call; with AddressSanitizer, which must be told
// of every switch, swapcontext.
#pragma once

#include <ucontext.h>

#include <csetjmp>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define LAMINA_ASAN_FIBERS 1
#include <sanitizer/common_interface_defs.h>
#endif

namespace lamina::dev::emu {

constexpr int round_up_warps(int threads) { return (threads + 31) / 32 * 32; }

// `bytes` of a block's shared memory, filled with `poison`, 1024-byte aligned, with nothing of ours
// behind it.
std::unique_ptr<std::byte[], void (*)(std::byte*)> allocate_smem(int bytes, int poison);

class Context;
void switch_to(Context& from, Context& to);
[[noreturn]] void leave_for(Context& from, Context& to);

// The host thread's own stack, or a new one.
class Context {
 public:
  Context() = default;
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  Context(Context&&) noexcept {}  // only before start(): vectors want it

  // The first switch here calls entry() on a stack of its own; it must leave with leave_for().
  void start(void (*entry)());
  bool has_started() const { return has_started_; }
  bool owns(const void* at) const;  // on its stack

 private:
  friend void switch_to(Context& from, Context& to);
  friend void leave_for(Context& from, Context& to);
  static void arrive(Context& here);

  void (*entry_)() = nullptr;
  void* stack_ = nullptr;
  bool has_started_ = false;
  ucontext_t first_;
  std::jmp_buf jump_;
#if defined(LAMINA_ASAN_FIBERS)
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#endif
};

}  // namespace lamina::dev::emu
