#include "device/emu/gmem_log.h"

#include <memory>
#include <utility>

namespace lamina::dev::emu {

GmemLog GmemLog::after(GmemLog before) {
  GmemLog log;
  log.lines_ = std::move(before.lines_);
  for (auto& [number, line] : log.lines_)
    for (Word& old : line)
      for (GlobalAccess* access : {&old.write, &old.read}) {
        if (access->access.time == 0) continue;
        access->access.time = 1;
        access->access.actor = 0;
        access->cluster = kBefore;
      }
  return log;
}

SharedOtherTimes GmemLog::everything_before() {
  static const auto all = std::make_shared<const OtherTimes>(
      OtherTimes{{kBefore, std::make_shared<const Times>(Times{1})}});
  return all;
}

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
