// The emulator's machine: runs a grid on the host, with one fiber for each CUDA thread, and looks for errors.
//
// A kernel uses it only through the functions in the other files of this folder. Each collective is a meeting of its
// lanes; the last lane to arrive computes the result that the PTX ISA defines. Between meetings a warp runs alone as
// far as it can, and a random generator picks the next warp, so a kernel that is right only when all warps keep in
// step fails. The seed decides everything, so a failure can be repeated.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

#include "base/status.h"
#include "device/device_info.h"
#include "device/types.h"

namespace lamina::dev::emu {

using Where = std::source_location;

// The options of the next launches of this host thread.
struct Options {
  uint64_t seed = 0;
  int resident_blocks = 1;      // blocks that run interleaved, for kernels that wait for others
  bool count_accesses = false;  // fill Report::sites
  bool runs_kernels = true;     // false: launches are only checked, for benchmarks of the host
};

// The accesses to shared memory by one line of a kernel, over all launches since the last reset. One wavefront serves
// all lanes whose words lie in different banks; wavefronts beyond the fewest possible number are conflicts.
struct Site {
  std::string function, file;
  unsigned line = 0;
  int64_t accesses = 0, wavefronts = 0, fewest = 0;
};

struct Report {
  int64_t launches = 0, blocks = 0, most_blocks = 0, switches = 0;  // most_blocks: of one launch
  std::vector<Site> sites;
};

Options& options();
DeviceInfo& device();  // the emulated GPU; with compute capability 0 there is none
Report report();
void reset_report();

class Block;
class Warp;

// A cp.async that was started and not waited for.
struct AsyncCopy {
  std::byte* to;
  const std::byte* from;
  int bytes, valid_bytes;
  std::array<std::byte, 16> early;  // the source, if it was read when the copy was issued
};

struct Fiber;

// The parts from which the other files of this folder are built. They may be called on fibers only.
Fiber& self();
int thread_of(const Fiber& fiber);
Index3 block_index_of(const Fiber& fiber);
Index3 grid_of(const Fiber& fiber);
std::byte* smem_of(const Fiber& fiber);
int smem_offset(const void* smem);  // in the block's shared memory, or as if it were

// Ends the launch with this message and the place of the thread.
[[noreturn]] void fail(const std::string& what, Where where);
// The same for an error that is found between fibers.
void fail_launch(const std::string& what);
std::string place(const std::string& what, Where where);  // "what at file:line"

// Waits until another fiber wakes this one. The caller must then check its condition again.
void suspend(const char* name, Where where);
void wake(Fiber& fiber);

int poison();  // a byte: as a float NaN, as an integer -1 or 127

using Lanes = std::array<void*, kWarpLanes>;  // the arguments of each lane

// Waits until every lane of `mask` is here with its own arguments, then calls compute(arguments by lane) once. `name`
// and `where` must be the same for all lanes; lanes that meet in different places have diverged.
void meet(uint32_t mask, const char* name, Where where, void* arguments,
          void (*compute)(const void* context, const Lanes& lanes), const void* context);
template <class Compute>
void meet(uint32_t mask, const char* name, Where where, void* arguments, const Compute& compute) {
  meet(
      mask, name, where, arguments,
      [](const void* context, const Lanes& lanes) {
        (*static_cast<const Compute*>(context))(lanes);
      },
      &compute);
}

inline constexpr int kAllThreads = 0;

// Barrier `id` of the block for `threads` of its threads. waits: false for an arrival without a wait.
void barrier(int id, int threads, bool waits, const char* name, Where where);

// Orders the earlier accesses of these lanes of the warp before the later accesses of any of them.
void order_lanes(uint32_t mask);

// Lets other warps run before this thread, which polls memory, goes on.
void poll(const char* name, Where where);
void note_progress();  // a value has changed that others may poll

void start_copy(const AsyncCopy& copy, Where where);
void commit_copies();
void finish_copies(int pending_groups);  // all but the newest groups

// Checks an access of the async proxy to shared memory: fails if a thread wrote these bytes through the generic proxy
// and has not fenced since.
void check_async_access(const void* smem, int bytes, const char* name, Where where);

// Inverse of dev::smem_address(); fails outside the block's shared memory.
std::byte* smem_pointer(uint32_t address, int bytes, const char* name, Where where);
// The offset of `smem` in the block's shared memory. Fails if it lies outside.
uint32_t offset_in_smem(const void* smem, int bytes, const char* name, Where where);

// Checks a lane's access to `bytes` at `at`: fails if the address is not naturally aligned. Also fails if a thread
// makes more accesses in a row than any kernel needs: it then waits for memory that no other thread gets to write.
void check_access(const void* at, int bytes, const char* name, Where where);
void note_shared_access(const void* at, int bytes, const char* name, Where where);
// Notes one phase of a collective, which accesses `count` rows of `bytes` at once.
void note_shared_rows(const void* const* rows, int count, int bytes, const char* name, Where where);

// Orders the accesses of earlier launches before the later accesses of this thread. A launch with
// LaunchShape::overlaps_previous in which no thread waits fails.
void note_wait_for_previous();

using Body = void (*)(const void* arguments);
Status run_grid(const char* kernel, const LaunchShape& shape, int threads, Body body,
                const void* arguments);

}  // namespace lamina::dev::emu
