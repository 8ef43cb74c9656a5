#include "device/emu/copy.h"

#include <cstring>
#include <utility>

#include "device/emu/block.h"
#include "device/emu/memory.h"

namespace lamina::dev::emu {

void start_copy(const AsyncCopy& copy, Where where) {
  Fiber& fiber = self();
  const int offset = static_cast<int>(offset_in_smem(copy.to, copy.bytes, "cp_async to", where));
  write_block(*fiber.block, fiber.clock, Access::by(fiber.clock, where), offset, copy.bytes, true,
              "cp_async", where);
  const size_t valid = static_cast<size_t>(copy.valid_bytes);
  if (valid > 0) read_global_async(copy.from, copy.valid_bytes, "cp_async", where);
  std::memset(copy.to, poison(), static_cast<size_t>(copy.bytes));
  fiber.open_group.push_back(copy);
  if (valid > 0 && reads_sources_early())
    std::memcpy(fiber.open_group.back().early.data(), copy.from, valid);
}

void commit_copies() { self().groups.push_back(std::exchange(self().open_group, {})); }

void finish_copies(int pending_groups) {
  Fiber& fiber = self();
  auto& groups = fiber.groups;
  for (; groups.size() > static_cast<size_t>(pending_groups); groups.pop_front())
    for (const AsyncCopy& copy : groups.front()) {
      const size_t valid = static_cast<size_t>(copy.valid_bytes);
      if (valid > 0)
        std::memcpy(copy.to, reads_sources_early() ? copy.early.data() : copy.from, valid);
      std::memset(copy.to + valid, 0, static_cast<size_t>(copy.bytes) - valid);
      fiber.block->log.deliver(fiber.clock.actor, fiber.clock.now,
                               fiber.block->offset_of(copy.to, copy.bytes), copy.bytes,
                               fiber.fences.async);
    }
}

}  // namespace lamina::dev::emu
