#include "device/emu/smem_log.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

namespace lamina::dev::emu {
namespace {

// Whether the log may forget `old` once it has `now`: an access that races with `old` races with `now` too.
bool replaces(const Access& now, const Access& old, const Clock& viewer) {
  return (old.bytes & ~now.bytes) == 0 &&
         (old.actor == now.actor || viewer.knows(old.actor, old.time));
}

}  // namespace

SmemLog::SmemLog(int bytes) : words_(nullptr, std::free), reads_(1) {
  const size_t count = static_cast<size_t>(bytes) / 4 + 1;
  words_.reset(static_cast<Word*>(std::calloc(count, sizeof(Word))));
  if (!words_) throw std::bad_alloc();
}

SharedTrouble SmemLog::find_write(const Word& word, const Clock& viewer, uint32_t bytes) const {
  if (word.in_flight & bytes) return {Trouble::kInFlight, word.write};
  if (word.write.bytes & bytes && !viewer.knows(word.write.actor, word.write.time))
    return {Trouble::kWrite, word.write};
  return {};
}

void SmemLog::push(uint32_t& list, const Access& access) {
  uint32_t made = free_;
  if (made) {
    free_ = reads_[made].next;
  } else {
    made = static_cast<uint32_t>(reads_.size());
    reads_.emplace_back();
  }
  reads_[made] = {access, list};
  list = made;
}

int SmemLog::erase_if(uint32_t& list, const auto& is_to_go) {
  int left = 0;
  for (uint32_t* link = &list; *link;) {
    Read& read = reads_[*link];
    if (is_to_go(read.access)) {
      const uint32_t gone = std::exchange(*link, read.next);
      read.next = std::exchange(free_, gone);
    } else {
      link = &read.next;
      ++left;
    }
  }
  return left;
}

void SmemLog::note_read(Word& word, const Clock& viewer, const Access& by) {
  if (word.read.time == 0 || replaces(by, word.read, viewer)) {
    word.read = by;
    return;
  }
  // The list is searched only when it has doubled, because many threads may read a word before a thread writes it.
  if (word.pushes_left == 0)
    word.pushes_left = static_cast<uint16_t>(std::min(
        4 + erase_if(word.more_reads, [&](const Access& old) { return replaces(by, old, viewer); }),
        1 << 15));
  --word.pushes_left;
  push(word.more_reads, by);
}

SharedTrouble SmemLog::read(const Clock& viewer, const Access& by, int offset, int bytes) {
  SharedTrouble trouble;
  Access mine = by;
  for_words(static_cast<uintptr_t>(offset), bytes, [&](uintptr_t at, uint32_t mask) {
    Word& word = words_[at];
    if ((word.written & mask) != mask)
      trouble = {Trouble::kUnwritten, {}};
    else
      trouble = find_write(word, viewer, mask);
    trouble.offset = static_cast<int>(4 * at);
    mine.bytes = mask & 15;
    if (!trouble) note_read(word, viewer, mine);
    return !trouble;
  });
  return trouble;
}

SharedTrouble SmemLog::look(const Clock& viewer, int offset, int bytes) const {
  SharedTrouble trouble;
  for_words(static_cast<uintptr_t>(offset), bytes, [&](uintptr_t at, uint32_t mask) {
    trouble = find_write(words_[at], viewer, mask);
    trouble.offset = static_cast<int>(4 * at);
    return !trouble;
  });
  return trouble;
}

SharedTrouble SmemLog::write(const Clock& viewer, const Access& by, int offset, int bytes,
                             uint32_t fences, bool starts_copy) {
  SharedTrouble trouble;
  for_words(static_cast<uintptr_t>(offset), bytes, [&](uintptr_t at, uint32_t mask) {
    Word& word = words_[at];
    trouble = find_write(word, viewer, mask);
    const auto check = [&](const Access& read) {
      if (read.bytes & mask && !viewer.knows(read.actor, read.time))
        trouble = {Trouble::kRead, read};
    };
    if (!trouble) check(word.read);
    for (uint32_t i = word.more_reads; i && !trouble; i = reads_[i].next) check(reads_[i].access);
    trouble.offset = static_cast<int>(4 * at);
    if (trouble) return false;

    const bool same = word.write.actor == by.actor && word.write.time == by.time;
    const uint32_t before = same ? word.write.bytes : 0;
    word.write = by;
    word.write.bytes = (before | mask) & 15;
    word.fences = fences;
    word.written |= static_cast<uint8_t>(mask);
    if (starts_copy) word.in_flight |= static_cast<uint8_t>(mask);
    if ((word.read.bytes & ~mask) == 0) word.read = {};
    erase_if(word.more_reads, [&](const Access& read) { return (read.bytes & ~mask) == 0; });
    return true;
  });
  return trouble;
}

void SmemLog::deliver(int actor, uint32_t time, int offset, int bytes, uint32_t fences) {
  for_words(static_cast<uintptr_t>(offset), bytes, [&](uintptr_t at, uint32_t mask) {
    Word& word = words_[at];
    word.in_flight &= static_cast<uint8_t>(~mask);
    word.write.actor = static_cast<uint16_t>(actor);
    word.write.time = time & ((1u << 28) - 1);
    word.fences = fences;
    return true;
  });
}

}  // namespace lamina::dev::emu
