// The registers that wgmmas used, with their values at the last wgmma_fence. If a value differs at the next wgmma, the
// register was written without a fence.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "device/types.h"

namespace lamina::dev::emu {

class FencedRegisters {
 public:
  using Lanes = std::array<const std::byte*, kWarpLanes>;  // one array of `bytes` for each lane

  void note(const Lanes& at, size_t bytes) {
    const auto mine = find(at, bytes);
    if (mine != known_.end()) known_.erase(mine);
    if (known_.size() == kMost) known_.erase(known_.begin());
    known_.push_back({at, bytes, {}});
    read(known_.back());
  }
  void fence() {
    for (Known& known : known_) read(known);
  }
  // False for unknown registers, because a first use cannot be checked.
  bool have_changed(const Lanes& at, size_t bytes) const {
    const auto mine = find(at, bytes);
    if (mine == known_.end()) return false;
    Known now{at, bytes, {}};
    read(now);
    return now.words != mine->words;
  }

 private:
  static constexpr size_t kMost = 64;  // more would make fences slow; the oldest are forgotten

  struct Known {
    Lanes at;
    size_t bytes;
    std::vector<uint32_t> words;
  };
  using Word [[gnu::may_alias]] = uint32_t;

  std::vector<Known>::const_iterator find(const Lanes& at, size_t bytes) const {
    return std::find_if(known_.begin(), known_.end(),
                        [&](const Known& other) { return other.at == at && other.bytes == bytes; });
  }

  // The variables may be out of scope by now. Their stacks still exist, and the values do not matter until the
  // registers are written again. So AddressSanitizer must not see this read; it is volatile, because the compiler
  // would otherwise make a memcpy of it, which AddressSanitizer sees.
  [[gnu::no_sanitize_address]] static void read(Known& known) {
    known.words.resize(kWarpLanes * known.bytes / 4);
    uint32_t* to = known.words.data();
    for (const std::byte* lane : known.at)
      for (size_t i = 0; i < known.bytes / 4; ++i)
        *to++ = reinterpret_cast<const volatile Word*>(lane)[i];
  }

  std::vector<Known> known_;
};

}  // namespace lamina::dev::emu
