// The last accesses to global memory during a launch, for each 4-byte word, and the knowledge that flags pass on.
// Finds races between all threads of the grid, and with earlier launches that the launch overlaps. The end of one
// block before the start of another orders nothing.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>

#include "device/emu/smem_log.h"

namespace lamina::dev::emu {

struct GlobalAccess {
  Access access;
  int64_t cluster = 0;
  bool is_strong = false;  // atomics, releases and acquires, which do not race with each other
};

struct GlobalTrouble {
  Trouble kind = Trouble::kNone;
  GlobalAccess other;

  explicit operator bool() const { return kind != Trouble::kNone; }
};

class GmemLog {
 public:
  static constexpr int64_t kBefore = -1;  // in place of a cluster: all earlier launches
  // The log of a launch that overlaps the earlier launches, and its knowledge when it has waited for them.
  static GmemLog after(GmemLog before);
  static SharedOtherTimes everything_before();

  GlobalTrouble read(const Clock& viewer, const Access& by, uintptr_t at, int bytes,
                     bool is_strong) {
    return note(viewer, by, at, bytes, false, is_strong);
  }
  GlobalTrouble write(const Clock& viewer, const Access& by, uintptr_t at, int bytes,
                      bool is_strong) {
    return note(viewer, by, at, bytes, true, is_strong);
  }

  // The knowledge that a thread gets when it acquires the last value of this flag.
  SharedOtherTimes& flag(uintptr_t at) { return flags_[at]; }

 private:
  struct Word {
    GlobalAccess write, read;  // of several readers, one is enough
  };
  static constexpr uintptr_t kLineWords = 16;
  using Line = std::array<Word, kLineWords>;

  GlobalTrouble note(const Clock& viewer, const Access& by, uintptr_t at, int bytes, bool writes,
                     bool is_strong);
  Word& word(uintptr_t number);

  std::unordered_map<uintptr_t, Line> lines_;
  uintptr_t last_number_ = 0;
  Line* last_ = nullptr;
  std::unordered_map<uintptr_t, SharedOtherTimes> flags_;
};

}  // namespace lamina::dev::emu
