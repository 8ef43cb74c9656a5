// The twin's machine: runs a grid on the host, one fiber per CUDA thread, and looks for trouble.
//
// A kernel meets it only through the functions beside this file. Each collective is a rendezvous of its
// lanes; the last to arrive computes the result that the PTX ISA defines. Between rendezvous a warp runs
// on alone as far as it can, and which warp is next is random: what only works when all warps keep step
// fails. Everything is decided by the seed, so a failure repeats.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device_info.h"
#include "device/types.h"

namespace lamina::dev::emu {

using Where = std::source_location;

// How the next launches of this host thread run.
struct Options {
  uint64_t seed = 0;
  int resident_blocks = 1;      // blocks that run interleaved, for kernels that wait for others
  bool count_accesses = false;  // fill Report::sites
  bool runs_kernels = true;     // false: launches are only checked, for benchmarks of the host
};

// Shared-memory accesses of one line of a kernel, over all launches since the last reset. A wavefront
// serves every lane whose words lie in different banks; what is beyond the fewest possible is a conflict.
struct Site {
  std::string function, file;
  unsigned line = 0;
  int64_t accesses = 0, wavefronts = 0, fewest = 0;
};

struct Report {
  int64_t launches = 0, blocks = 0, most_blocks = 0, switches = 0;  // most: of one launch
  std::vector<Site> sites;
};

Options& options();
DeviceInfo& device();  // that ops take for the device of their tensors; compute capability 0: none
Report report();
void reset_report();

class Block;
class Warp;

// A copy that was started and not waited for.
struct AsyncCopy {
  std::byte* to;
  const std::byte* from;
  int bytes, valid_bytes;
  std::array<std::byte, 16> early;  // the source, if it was read when the copy was issued
};

struct Fiber;

// What the functions beside this file are made of. They may be called on fibers only.
Fiber& self();
int thread_of(const Fiber& fiber);
Index3 block_index_of(const Fiber& fiber);
Index3 grid_of(const Fiber& fiber);
std::byte* smem_of(const Fiber& fiber);
int smem_offset(const void* smem);  // in the block's shared memory, or as if it were

// Ends the launch with this message, the thread's place added.
[[noreturn]] void fail(const std::string& what, Where where);
// The same for what comes to light between fibers.
void fail_launch(const std::string& what);
std::string place(const std::string& what, Where where);  // "what at file:line"

// Waits until somebody wakes this fiber; what it then finds it must check again.
void suspend(const char* name, Where where);
void wake(Fiber& fiber);

int poison();  // of every byte: NaN where bytes are floats, -1 or 127 where they are integers

// Waits until every lane of `mask` is here with arguments of its own; compute(arguments by lane) runs
// once. `name` and `where` must be the same for all: lanes that meet in different places diverged.
void meet(uint32_t mask, const char* name, Where where, void* arguments,
          const std::function<void(const std::array<void*, kWarpLanes>&)>& compute);

inline constexpr int kAllThreads = 0;

// Barrier `id` of the block for `threads` of its threads; `waits` is false for an arrival only.
void barrier(int id, int threads, bool waits, const char* name, Where where);

// What these lanes of the warp did before is ordered before what any of them does after.
void order_lanes(uint32_t mask);

// Lets other warps run before this thread goes on: it is polling memory.
void poll(const char* name, Where where);
void note_progress();  // something has changed that others may poll

void start_copy(const AsyncCopy& copy, Where where);
void commit_copies();
void finish_copies(int pending_groups);  // all but the newest groups

// Shared memory as the async proxy reads or writes it: fails where a thread wrote these bytes in the
// generic proxy and has not fenced since.
void check_async_access(const void* smem, int bytes, const char* name, Where where);

// Inverse of dev::smem_address(); fails outside the block's shared memory.
std::byte* smem_pointer(uint32_t address, int bytes, const char* name, Where where);
// Offset in the block's shared memory of what must lie within it.
uint32_t offset_in_smem(const void* smem, int bytes, const char* name, Where where);

// A lane's access of `bytes` at `at`, naturally aligned or the launch fails. So it does where a thread
// makes more of them in a row than any needs: it waits for memory that nobody else gets to write.
void check_access(const void* at, int bytes, const char* name, Where where);
void note_shared_access(const void* at, int bytes, const char* name, Where where);
// One phase of a collective: `count` rows of `bytes` that are read at once.
void note_shared_rows(const void* const* rows, int count, int bytes, const char* name, Where where);

// What the launches before did is ordered before what this thread does from here on. A launch with
// LaunchShape::overlaps_previous in which no thread waits fails.
void note_wait_for_previous();

using Body = void (*)(const void* arguments);
Status run_grid(const char* kernel, const LaunchShape& shape, int threads, Body body,
                const void* arguments);

}  // namespace lamina::dev::emu
