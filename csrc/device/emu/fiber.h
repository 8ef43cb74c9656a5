// Fibers: contexts with stacks of their own on one host thread. A switch uses _setjmp and _longjmp, which stay in
// user space, while swapcontext saves the signal mask with a system call. Under AddressSanitizer, which must be told
// of every switch, it uses swapcontext.
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

// Allocates `bytes` of shared memory for a block, filled with `poison`, 1024-byte aligned, and followed by no other
// memory of the emulator.
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
  Context(Context&&) noexcept {}  // for std::vector; only before start()

  // The first switch to this context calls entry() on a new stack. entry() must end with leave_for().
  void start(void (*entry)());
  bool has_started() const { return has_started_; }
  bool owns(const void* at) const;  // whether `at` lies on its stack

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
