#include "device/emu/mbarrier.h"

#include <cstring>
#include <utility>

#include "device/emu/async_proxy.h"
#include "device/emu/block.h"

namespace lamina::dev::emu {
namespace {

constexpr uint64_t kSeal = 0x6d42617272696572u;

std::string smem_text(uint32_t offset) {
  return "the mbarrier at smem + " + std::to_string(offset);
}

void write_seal(Block& block, const MBarrierState& barrier) {
  const uint64_t seal = barrier.seal();
  std::memcpy(block.smem.get() + barrier.offset, &seal, sizeof seal);
}

bool is_sealed(const Block& block, const MBarrierState& barrier) {
  const uint64_t seal = barrier.seal();
  return std::memcmp(block.smem.get() + barrier.offset, &seal, sizeof seal) == 0;
}

uint32_t offset_of(const MBarrier* barrier, const char* name, Where where) {
  check_access(barrier, sizeof(MBarrier), name, where);
  return offset_in_smem(barrier, sizeof(MBarrier), name, where);
}

void end_phase_if_complete(Block& block, MBarrierState& barrier) {
  if (barrier.pending > 0 || barrier.missing_bytes != 0) return;
  ++barrier.phase;
  barrier.arriving.add(barrier.actor, barrier.phase);
  barrier.before = barrier.arriving.view();
  barrier.pending = barrier.expected;
  write_seal(block, barrier);
  for (Fiber* fiber : std::exchange(barrier.waiting, {})) wake(*fiber);
}

// Fails unless this thread knows of the initialisation.
void check_initialised(Block& block, uint32_t offset, const char* name, Where where) {
  look_at_block(block, self().clock, static_cast<int>(offset), sizeof(MBarrier), name, where);
}

// Whether the phase is over; if it is not, lets others run first and looks again.
bool wait_once(const MBarrier* at, int parity, const char* name, Where where,
               void (*let_others_run)(const char*, Where)) {
  const uint32_t offset = offset_of(at, name, where);
  if (parity != 0 && parity != 1)
    fail(std::string(name) + ": parity " + std::to_string(parity) + "; 0 or 1", where);
  Fiber& fiber = self();
  MBarrierState& barrier = find_mbarrier(*fiber.block, offset, name, where);
  check_initialised(*fiber.block, offset, name, where);
  const auto is_over = [&] {
    const bool is = static_cast<int>(barrier.phase % 2) != parity;
    if (is) fiber.clock.view.join(barrier.before);
    return is;
  };
  if (is_over()) return true;
  barrier.waiting.push_back(&fiber);
  fiber.waits_for = &barrier;
  let_others_run(name, where);
  fiber.waits_for = nullptr;
  std::erase(barrier.waiting, &fiber);
  return is_over();
}

}  // namespace

uint64_t MBarrierState::seal() const {
  return kSeal ^ (uint64_t{offset} << 40) ^ (uint64_t{phase} << 8);
}

std::string MBarrierState::describe() const {
  return smem_text(offset) + " is in phase " + std::to_string(phase) + ": " +
         std::to_string(pending) + " of " + std::to_string(expected) + " arrivals and " +
         std::to_string(missing_bytes) + " bytes are missing";
}

MBarrierState& find_mbarrier(Block& block, uint32_t offset, const char* name, Where where) {
  const auto found = block.mbarriers.find(offset);
  if (found == block.mbarriers.end())
    fail(std::string(name) + ": " + smem_text(offset) + " is not initialised", where);
  if (!is_sealed(block, found->second))
    fail(std::string(name) + ": " + smem_text(offset) + " is not initialised: it was written over",
         where);
  return found->second;
}

void init_mbarrier(MBarrier* at, int arrivals, Where where) {
  const char* const name = "mbarrier_init";
  const uint32_t offset = offset_of(at, name, where);
  if (arrivals < 1 || arrivals > kMaxMBarrierCount)
    fail(std::string(name) + ": " + std::to_string(arrivals) + " arrivals; 1 to 2^20 - 1", where);
  const Fiber& fiber = self();
  Block& block = *fiber.block;
  if (const auto old = block.mbarriers.find(offset);
      old != block.mbarriers.end() && is_sealed(block, old->second))
    fail(std::string(name) + ": " + smem_text(offset) + " is in use already", where);
  write_block(block, fiber.clock, Access::by(fiber.clock, where), static_cast<int>(offset),
              sizeof(MBarrier), false, name, where);
  MBarrierState& barrier = block.mbarriers[offset];
  barrier = {};
  barrier.offset = offset;
  barrier.expected = barrier.pending = arrivals;
  barrier.initialiser = fiber.thread;
  barrier.actor = block.cluster->actors++;
  barrier.init_fences = fiber.fences.init;
  write_seal(block, barrier);
}

void signal_mbarrier(MBarrier* at, int rank, int bytes, int arrivals, const char* name,
                     Where where) {
  const uint32_t offset = offset_of(at, name, where);
  Block& block = rank == kOwnRank ? *self().block : block_of_rank(rank, name, where);
  MBarrierState& barrier = find_mbarrier(block, offset, name, where);
  if (bytes < 0 || bytes > kMaxMBarrierCount || barrier.missing_bytes + bytes > kMaxMBarrierCount)
    fail(std::string(name) + ": " + std::to_string(bytes) + " more bytes; " + barrier.describe() +
             ", at most 2^20 - 1 can be",
         where);
  check_initialised(block, offset, name, where);
  note_progress();
  barrier.missing_bytes += bytes;
  if (arrivals == 0) return;
  if (arrivals > barrier.pending)
    fail(std::string(name) + ": more arrivals than expected; " + barrier.describe(), where);
  barrier.pending -= arrivals;
  barrier.arriving.add(self().clock);
  end_phase_if_complete(block, barrier);
}

void complete_bytes(Block& block, MBarrierState& barrier, int64_t bytes) {
  barrier.missing_bytes -= bytes;
  if (barrier.missing_bytes < -kMaxMBarrierCount)
    fail_launch("bulk copies brought more than was expected: " + barrier.describe());
  end_phase_if_complete(block, barrier);
}

bool try_wait_mbarrier(MBarrier* at, int parity, Where where) {
  return wait_once(at, parity, "mbarrier_try_wait", where, poll);
}

void wait_mbarrier(MBarrier* at, int parity, Where where) {
  // If the next phase has ended too before a slow thread looks, the thread goes on waiting, as it would on a GPU.
  while (!wait_once(at, parity, "mbarrier_wait", where, suspend)) {
  }
}

void fence_mbarriers() { ++self().fences.init; }

void fence_async() {
  ++self().fences.async;
  ++self().fences.init;
}

}  // namespace lamina::dev::emu
