#include "device/emu/async_proxy.h"

#include "device/emu/block.h"
#include "device/emu/index.h"

namespace lamina::dev::emu {

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
  // Below kSmemBase the difference wraps to an address far past the end of any shared memory.
  const uint32_t offset = address - kSmemBase;
  const int size = self().block->smem_bytes;
  if (int64_t{offset} + bytes > size)
    fail(std::string(name) + ": " + std::to_string(bytes) + " bytes from address " +
             std::to_string(address) + " are not in the block's " + std::to_string(size) +
             " bytes of shared memory, which begin at " + std::to_string(kSmemBase),
         where);
  return smem_of(self()) + offset;
}

void check_fenced(Block& block, uint32_t offset, int bytes, const char* name, Where where) {
  const Cluster& cluster = *block.cluster;
  const auto writer_of = [&](int thread) -> const Fiber* {
    const Block* const home = cluster.blocks[static_cast<size_t>(thread / cluster.threads)];
    return home ? &home->fibers[static_cast<size_t>(thread % cluster.threads)] : nullptr;
  };
  // PTX would also accept a fence by another thread that has synchronised with the writer. The emulator is stricter.
  const auto is_fenced = [&](int thread, uint32_t fences) {
    const Fiber* const writer = writer_of(thread);
    return !writer || writer->fences.async != fences;
  };
  const SmemLog::Unfenced found =
      block.log.find_unfenced(static_cast<int>(offset), bytes, cluster.all_threads(), is_fenced);
  if (found.offset >= 0)
    fail(std::string(name) + ": thread " + std::to_string(found.thread % cluster.threads) +
             " wrote smem + " + std::to_string(found.offset) +
             " and has not called fence_proxy_async since",
         where);
}

void check_async_access(const void* smem, int bytes, const char* name, Where where) {
  check_fenced(*self().block, offset_in_smem(smem, bytes, name, where), bytes, name, where);
}

}  // namespace lamina::dev::emu
