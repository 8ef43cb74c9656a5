// Who accessed global memory last during a launch, by 4-byte words, and what flags tell: finds races
// between all threads of the grid, and with launches before that it overlaps. That a block had ended before another
// began orders nothing.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>

#include "device/emu/smem_log.h"

namespace lamina::dev::emu {

struct GlobalAccess {
  Access access;
  int64_t cluster = 0;
  bool is_strong = false;  // an atomic, a release or an acquire: they do not race with each other
};

struct GlobalTrouble {
  Trouble kind = Trouble::kNone;
  GlobalAccess other;

  explicit operator bool() const { return kind != Trouble::kNone; }
};

class GmemLog {
 public:
  static constexpr int64_t kBefore = -1;  // in place of a cluster: all that launches before did
  // Of a launch that overlaps them, and what it knows when it has waited for them.
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

  // What is known to who acquires what was last written to this flag.
  SharedOtherTimes& flag(uintptr_t at) { return flags_[at]; }

 private:
  struct Word {
    GlobalAccess write, read;  // one reader of several is enough to remember
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
