// The waits of threads for each other: the meetings of the lanes of a warp, and the barriers of a block.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "device/emu/block.h"

namespace lamina::dev::emu {
namespace {

bool is_same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool is_same_place(Where a, Where b) {
  return a.line() == b.line() && a.column() == b.column() &&
         is_same_text(a.file_name(), b.file_name());
}

// Calls f(lane) for each lane of the mask.
void each_lane(Warp& warp, uint32_t mask, const auto& f) {
  for (; mask; mask &= mask - 1) f(warp.lane(std::countr_zero(mask)));
}

}  // namespace

bool come_together(uint32_t mask, const char* name, Where where, void* arguments, Lanes& all) {
  Fiber& fiber = self();
  Warp& warp = *fiber.warp;
  if (!(mask & fiber.bit())) fail(std::string(name) + ": this lane is not in the mask", where);
  auto meeting = std::find_if(warp.meetings.begin(), warp.meetings.end(),
                              [&](const Warp::Meeting& open) { return open.mask == mask; });
  if (meeting == warp.meetings.end())
    meeting = warp.meetings.insert(meeting, {mask, 0, name, where, {}});
  if (!is_same_text(meeting->name, name) || !is_same_place(meeting->where, where))
    fail("the warp diverged: other lanes wait in " + place(meeting->name, meeting->where) +
             ", this one is in " + name,
         where);
  meeting->arrived |= fiber.bit();
  meeting->arguments[static_cast<size_t>(fiber.thread % kWarpLanes)] = arguments;
  if (meeting->arrived != mask) {
    suspend(name, where);
    return false;
  }
  all = meeting->arguments;
  warp.meetings.erase(meeting);
  return true;
}

void wake_lanes(Warp& warp, uint32_t mask) {
  each_lane(warp, mask & ~self().bit(), [](Fiber& lane) { wake(lane); });
}

void meet(uint32_t mask, const char* name, Where where, void* arguments,
          void (*compute)(const void* context, const Lanes& lanes), const void* context) {
  Lanes all;
  if (!come_together(mask, name, where, arguments, all)) return;
  compute(context, all);
  wake_lanes(*self().warp, mask);
}

void order_lanes(uint32_t mask) {
  Warp& warp = *self().warp;
  Gathering gathering;
  each_lane(warp, mask, [&](Fiber& lane) { gathering.add(lane.clock); });
  each_lane(warp, mask, [&](Fiber& lane) { lane.clock.view = gathering.view(); });
}

void barrier(int id, int threads, bool waits, const char* name, Where where) {
  Block& block = *self().block;
  Warp& warp = *self().warp;
  const int all = round_up_warps(static_cast<int>(block.fibers.size()));
  if (threads == kAllThreads) threads = all;
  if (id < 0 || id >= Block::kBarriers)
    fail(std::string(name) + ": no barrier " + std::to_string(id), where);
  if (threads % kWarpLanes != 0 || threads > all)
    fail(std::string(name) + ": " + std::to_string(threads) + " of " + std::to_string(all) +
             " threads",
         where);
  // bar.sync and bar.arrive are .aligned: all lanes that the warp began with must call, and the warp counts once.
  using Call = std::pair<int, int>;
  Call mine{id, threads};
  Lanes calls;
  if (!come_together(warp.all, name, where, &mine, calls)) return;
  for (void* call : calls)
    if (call && *static_cast<Call*>(call) != mine)
      fail(std::string(name) + ": lanes of the warp are at different barriers", where);
  Block::Barrier& barrier = block.barriers[static_cast<size_t>(id)];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads)
    fail(std::string(name) + ": barrier " + std::to_string(id) + " already expects " +
             std::to_string(barrier.expected) + " threads, not " + std::to_string(threads),
         where);
  each_lane(warp, warp.all, [&](Fiber& lane) { barrier.clock.add(lane.clock); });
  if (waits) each_lane(warp, warp.all, [&](Fiber& lane) { barrier.waiting.push_back(&lane); });
  barrier.arrived += kWarpLanes;
  if (barrier.arrived == barrier.expected) {
    const View view = barrier.clock.view();
    for (Fiber* fiber : barrier.waiting) fiber->clock.view = view;
    for (Fiber* fiber : barrier.waiting)
      if (fiber != &self()) wake(*fiber);
    barrier = {};
  } else if (waits) {
    return suspend(name, where);
  }
  if (!waits) wake_lanes(warp, warp.all);
}

}  // namespace lamina::dev::emu
