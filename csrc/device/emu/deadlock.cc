// The report of a deadlock: the places where the threads of a launch wait.
#include <algorithm>
#include <bit>
#include <sstream>

#include "device/emu/block.h"

namespace lamina::dev::emu {

std::string text(Index3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

std::string place(const std::string& what, Where where) {
  const std::string path = where.file_name();
  return what + " at " + path.substr(path.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string describe_waiting(const std::vector<std::unique_ptr<Block>>& blocks) {
  std::ostringstream out;
  for (const std::unique_ptr<Block>& block : blocks)
    for (const Warp& warp : block->warps)
      for (const Fiber& fiber : block->fibers) {
        if (fiber.warp != &warp || fiber.state == Fiber::State::kDone) continue;
        // Lanes that wait in the same place are reported once, at the first of them.
        const auto same = [&](const Fiber& other) {
          return other.warp == &warp && other.state != Fiber::State::kDone &&
                 other.where.line() == fiber.where.line() && other.waits_in == fiber.waits_in &&
                 other.waits_for == fiber.waits_for;
        };
        const auto first = std::find_if(block->fibers.begin(), block->fibers.end(), same);
        if (&*first != &fiber) continue;
        const auto count = std::count_if(block->fibers.begin(), block->fibers.end(), same);
        out << "\n  block " << text(block->index) << " warp " << warp.first_thread / kWarpLanes
            << ": " << count << " lanes from thread " << fiber.thread << " wait in "
            << place(fiber.waits_in, fiber.where);
        if (fiber.waits_for) out << ", " << fiber.waits_for->describe();
        if (warp.live != kFullWarp) out << ", " << std::popcount(~warp.live) << " lanes are gone";
      }
  return out.str();
}

}  // namespace lamina::dev::emu
