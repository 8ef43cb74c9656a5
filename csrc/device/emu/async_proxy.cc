#include "device/emu/async_proxy.h"

#include "device/emu/block.h"
#include "device/emu/index.h"

namespace lamina::dev::emu {
namespace {

constexpr int kMaxThreads = 1024;  // of a block

int writer_of(const Fiber& fiber) { return fiber.block->rank * kMaxThreads + fiber.thread; }

}  // namespace

uint32_t offset_in_smem(const void* smem, int bytes, const char* name, Where where) {
  const int64_t offset =
      reinterpret_cast<intptr_t>(smem) - reinterpret_cast<intptr_t>(smem_of(self()));
  const int size = self().block->smem_bytes;
  if (offset < 0 || offset + bytes > size)
    fail(std::string(name) + ": " + std::to_string(bytes) + " bytes from " +
             std::to_string(offset) + " are not in the block's " + std::to_string(size) +
             " bytes of shared memory",
         where);
  return static_cast<uint32_t>(offset);
}

std::byte* smem_pointer(uint32_t address, int bytes, const char* name, Where where) {
  // Below kSmemBase the difference wraps: an address far beyond the end of any shared memory.
  const uint32_t offset = address - kSmemBase;
  const int size = self().block->smem_bytes;
  if (int64_t{offset} + bytes > size)
    fail(std::string(name) + ": " + std::to_string(bytes) + " bytes from address " +
             std::to_string(address) + " are not in the block's " + std::to_string(size) +
             " bytes of shared memory, which begin at " + std::to_string(kSmemBase),
         where);
  return smem_of(self()) + offset;
}

void note_generic_write(const void* smem, int bytes) {
  Fiber& fiber = self();
  Cluster& cluster = *fiber.block->cluster;
  for (Block* block : cluster.blocks) {
    if (!block) continue;
    const int64_t offset =
        reinterpret_cast<intptr_t>(smem) - reinterpret_cast<intptr_t>(block->smem.get());
    if (offset >= 0 && offset + bytes <= block->smem_bytes)
      block->writes.note(static_cast<int>(offset), bytes, writer_of(fiber), fiber.fences.async);
  }
}

void check_fenced(Block& block, uint32_t offset, int bytes, const char* name, Where where) {
  const int first = static_cast<int>(offset);
  for (int at = first / 4 * 4; at < first + bytes; at += 4) {
    const int writer = block.writes.writer(at);
    if (writer < 0) continue;
    const Block* const home = block.cluster->blocks[static_cast<size_t>(writer / kMaxThreads)];
    if (!home) continue;
    const Fiber& fiber = home->fibers[static_cast<size_t>(writer % kMaxThreads)];
    if (!block.writes.is_fenced(at, fiber.fences.async))
      fail(std::string(name) + ": thread " + std::to_string(fiber.thread) + " wrote smem + " +
               std::to_string(at) + " and has not called fence_proxy_async since",
           where);
  }
}

void check_async_access(const void* smem, int bytes, const char* name, Where where) {
  check_fenced(*self().block, offset_in_smem(smem, bytes, name, where), bytes, name, where);
}

}  // namespace lamina::dev::emu
