#include "device/emu/memory.h"

#include <string>
#include <utility>

#include "device/emu/block.h"
#include "device/emu/gmem_log.h"

namespace lamina::dev::emu {
namespace {

std::string describe(Trouble kind, const Access& other, int64_t cluster, const char* name) {
  const std::string by = thread_text(cluster, other.thread);
  switch (kind) {
    case Trouble::kWrite:
      return place("the write by " + by, other.where) + " races with " + name;
    case Trouble::kRead:
      return place("the read by " + by, other.where) + " races with " + name;
    case Trouble::kInFlight:
      return place("the copy of " + by, other.where) + " is in flight for " + name;
    case Trouble::kUnwritten:
      return std::string("nobody has written what is read in ") + name;
    case Trouble::kNone:
      break;
  }
  return {};
}

[[noreturn]] void fail_shared(const SharedTrouble& trouble, const Block& block, const char* name,
                              Where where) {
  fail("smem + " + std::to_string(trouble.offset) + ": " +
           describe(trouble.kind, trouble.other, block.cluster->number, name),
       where);
}

[[noreturn]] void fail_global(const GlobalTrouble& trouble, const char* name, Where where) {
  const GlobalAccess& other = trouble.other;
  fail("global memory: " + describe(trouble.kind, other.access, other.cluster, name), where);
}

// The block of the cluster in whose shared memory `at` lies. The caller has checked that there is one.
Block& home_of(const void* at) {
  for (Block* block : self().block->cluster->blocks)
    if (block && block->offset_of(at, 1) >= 0) return *block;
  return *self().block;
}

void check_global(const void* at, int bytes, const char* name, Where where) {
  if (const char* space = space_of(at, bytes))
    fail(std::string(name) + ": an address in " + space + ", not in global memory", where);
}

uintptr_t address(const void* at) { return reinterpret_cast<uintptr_t>(at); }

}  // namespace

void read_block(Block& block, const Clock& viewer, const Access& by, int offset, int bytes,
                const char* name, Where where) {
  if (const SharedTrouble trouble = block.log.read(viewer, by, offset, bytes))
    fail_shared(trouble, block, name, where);
}
void look_at_block(Block& block, const Clock& viewer, int offset, int bytes, const char* name,
                   Where where) {
  if (const SharedTrouble trouble = block.log.look(viewer, offset, bytes))
    fail_shared(trouble, block, name, where);
}
void know_write(const Block& block, const Clock& viewer, const Access& write, const char* name,
                Where where) {
  if (!viewer.knows(write.actor, write.time))
    fail(describe(Trouble::kWrite, write, block.cluster->number, name), where);
}
void write_block(Block& block, const Clock& viewer, const Access& by, int offset, int bytes,
                 bool starts_copy, const char* name, Where where) {
  if (const SharedTrouble trouble =
          block.log.write(viewer, by, offset, bytes, self().fences.async, starts_copy))
    fail_shared(trouble, block, name, where);
}

void read_shared(const void* at, int bytes, const char* name, Where where) {
  check_access(at, bytes, name, where);
  const int offset = static_cast<int>(offset_in_smem(at, bytes, name, where));
  const Clock& clock = self().clock;
  read_block(*self().block, clock, Access::by(clock, where), offset, bytes, name, where);
}

void write_shared(const void* at, int bytes, const char* name, Where where) {
  check_access(at, bytes, name, where);
  const int offset = static_cast<int>(offset_in_smem(at, bytes, name, where));
  const Clock& clock = self().clock;
  write_block(*self().block, clock, Access::by(clock, where), offset, bytes, false, name, where);
}

void read_cluster(const void* at, int bytes, const char* name, Where where) {
  Block& block = home_of(at);
  const Clock& clock = self().clock;
  read_block(block, clock, Access::by(clock, where), block.offset_of(at, bytes), bytes, name,
             where);
}

void write_cluster(const void* at, int bytes, const char* name, Where where) {
  Block& block = home_of(at);
  const Clock& clock = self().clock;
  write_block(block, clock, Access::by(clock, where), block.offset_of(at, bytes), bytes, false,
              name, where);
}

void read_global_async(const void* at, int bytes, const char* name, Where where) {
  check_global(at, bytes, name, where);
  const Clock& clock = self().clock;
  if (const GlobalTrouble trouble =
          gmem_log().read(clock, Access::by(clock, where), address(at), bytes, false))
    fail_global(trouble, name, where);
}

void write_global_async(const void* at, int bytes, int actor, uint32_t time, const char* name,
                        Where where) {
  check_global(at, bytes, name, where);
  const Clock& clock = self().clock;
  if (const GlobalTrouble trouble =
          gmem_log().write(clock, Access::by(clock, actor, time, where), address(at), bytes, false))
    fail_global(trouble, name, where);
}

void read_global(const void* at, int bytes, const char* name, Where where) {
  check_access(at, bytes, name, where);
  let_others_interfere();
  read_global_async(at, bytes, name, where);
}

void write_global(const void* at, int bytes, const char* name, Where where) {
  check_access(at, bytes, name, where);
  let_others_interfere();
  const Clock& clock = self().clock;
  write_global_async(at, bytes, clock.actor, clock.now, name, where);
}

namespace {

void note_strong(const void* at, bool reads, bool writes, const char* name, Where where) {
  check_access(at, 4, name, where);
  check_global(at, 4, name, where);
  const Clock& clock = self().clock;
  const Access mine = Access::by(clock, where);
  GlobalTrouble trouble;
  if (reads) trouble = gmem_log().read(clock, mine, address(at), 4, true);
  if (writes && !trouble) trouble = gmem_log().write(clock, mine, address(at), 4, true);
  if (trouble) fail_global(trouble, name, where);
}

}  // namespace

void acquire_global(const void* at, const char* name, Where where) {
  self().clock.acquire(gmem_log().flag(address(at)));
  note_strong(at, true, false, name, where);
}

void release_global(const void* at, const char* name, Where where) {
  note_strong(at, false, true, name, where);
  gmem_log().flag(address(at)) = self().clock.publish();
}

void update_global(const void* at, bool releases, const char* name, Where where) {
  note_strong(at, true, true, name, where);
  Clock& clock = self().clock;
  SharedOtherTimes& flag = gmem_log().flag(address(at));
  clock.heard = join(clock.heard, flag);
  flag = join(flag, releases ? clock.publish() : clock.fenced);
}

void fence_global() {
  Clock& clock = self().clock;
  clock.acquire(std::exchange(clock.heard, nullptr));
  clock.fenced = clock.publish();
}

}  // namespace lamina::dev::emu
