#include "device/emu/gmem_log.h"

namespace lamina::dev::emu {

GmemLog::Word& GmemLog::word(uintptr_t number) {
  if (!last_ || number / kLineWords != last_number_) {
    last_number_ = number / kLineWords;
    last_ = &lines_[last_number_];
  }
  return (*last_)[number % kLineWords];
}

GlobalTrouble GmemLog::note(const Clock& viewer, const Access& by, uintptr_t begin, int bytes,
                            bool writes, bool is_strong) {
  GlobalTrouble trouble;
  GlobalAccess mine{by, viewer.cluster, is_strong};
  const auto is_known = [&](const GlobalAccess& old) {
    return viewer.knows_of(old.cluster, old.access.actor, old.access.time);
  };
  for_words(begin, bytes, [&](uintptr_t at, uint32_t mask) {
    Word& old = word(at);
    const auto races = [&](const GlobalAccess& other) {
      return other.access.bytes & mask && !(is_strong && other.is_strong) && !is_known(other);
    };
    if (races(old.write)) trouble = {Trouble::kWrite, old.write};
    if (writes && races(old.read)) trouble = {Trouble::kRead, old.read};
    if (trouble) return false;
    mine.access.bytes = mask & 15;
    if (writes) {
      old.write = mine;
      if ((old.read.access.bytes & ~mask) == 0) old.read = {};
    } else if (old.read.access.time == 0 || old.read.is_strong ||
               ((old.read.access.bytes & ~mask) == 0 && is_known(old.read))) {
      old.read = mine;
    }
    return true;
  });
  return trouble;
}

}  // namespace lamina::dev::emu
