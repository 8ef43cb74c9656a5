// Who accessed a block's shared memory last, by 4-byte words: finds races, two accesses of a byte of which
// one writes and that nothing orders; reads of what nobody wrote; whatever touches a copy in flight; and
// what the async proxy would see before a fence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/emu/clock.h"
#include "device/emu/executor.h"

namespace lamina::dev::emu {

// One access, 16 bytes: there is one of these for every word.
struct Access {
  Where where;
  uint32_t time : 28 = 0;  // of the actor; 0: no access
  uint32_t bytes : 4 = 0;  // of the word, a bit each
  uint16_t actor = 0;
  uint16_t thread = 0;  // of the cluster, that made it or asked for it

  static Access by(const Clock& clock, Where where) {
    return by(clock, clock.actor, clock.now, where);
  }
  // By something that `clock`'s thread starts.
  static Access by(const Clock& clock, int actor, uint32_t time, Where where) {
    return {where, time & ((1u << 28) - 1), 0, static_cast<uint16_t>(actor),
            static_cast<uint16_t>(clock.actor < 0 ? 0 : clock.actor)};
  }
};

// visit(number of a word, its bytes that are meant) for each word of [begin, begin + bytes), until one
// returns false.
void for_words(uintptr_t begin, int bytes, const auto& visit) {
  for (uintptr_t at = begin, end = begin + static_cast<uintptr_t>(bytes); at < end;) {
    const uintptr_t next = std::min(end, at / 4 * 4 + 4);
    if (!visit(at / 4, ((1u << (next - at)) - 1) << at % 4)) return;
    at = next;
  }
}

// What is wrong with an access.
enum class Trouble : uint8_t {
  kNone,
  kWrite,      // races with one
  kRead,       // races with one
  kInFlight,   // touches what is being copied
  kUnwritten,  // reads what nobody has written
};

struct SharedTrouble {
  Trouble kind = Trouble::kNone;
  Access other;    // if there is one
  int offset = 0;  // in shared memory

  explicit operator bool() const { return kind != Trouble::kNone; }
};

class SmemLog {
 public:
  SmemLog() = default;
  explicit SmemLog(int bytes);

  // `by` is what is remembered, `viewer` what is known when it happens.
  SharedTrouble read(const Clock& viewer, const Access& by, int offset, int bytes);
  SharedTrouble write(const Clock& viewer, const Access& by, int offset, int bytes, uint32_t fences,
                      bool starts_copy = false);
  // visit(last write of a word) for each of those that were written.
  void for_writes(int offset, int bytes, const auto& visit) const {
    for (int at = offset / 4; 4 * at < offset + bytes; ++at)
      if (words_[static_cast<size_t>(at)].write.time) visit(words_[static_cast<size_t>(at)].write);
  }
  // What a read would find, if it does not count as one.
  SharedTrouble look(const Clock& viewer, int offset, int bytes) const;
  // The copy that write() started is there.
  void deliver(int actor, uint32_t time, int offset, int bytes, uint32_t fences);

  // Of the bytes that threads below `threads` wrote last, and where is_fenced(thread, fences) is false,
  // the first; -1 if there are none. What an actor of another kind wrote needs no fence.
  struct Unfenced {
    int offset = -1, thread = 0;
  };
  Unfenced find_unfenced(int offset, int bytes, int threads, const auto& is_fenced) const {
    for (int at = offset / 4; 4 * at < offset + bytes; ++at) {
      const Word& word = words_[static_cast<size_t>(at)];
      if (word.write.time && word.write.actor < threads &&
          !is_fenced(word.write.actor, word.fences))
        return {4 * at, word.write.actor};
    }
    return {};
  }

 private:
  struct Word {
    Access write, read;
    uint32_t fences;             // of the writing thread, before it wrote
    uint32_t more_reads;         // a list
    uint8_t written, in_flight;  // bytes
    uint16_t pushes_left;        // before that list is looked through
  };

  SharedTrouble find_write(const Word& word, const Clock& viewer, uint32_t bytes) const;
  void note_read(Word& word, const Clock& viewer, const Access& by);

  // Lists of reads, for words with several readers: no allocation for each.
  struct Read {
    Access access;
    uint32_t next;  // 0: none
  };
  void push(uint32_t& list, const Access& access);
  int erase_if(uint32_t& list, const auto& is_to_go);  // how many are left

  // Zeros from calloc: most blocks touch little of their memory.
  std::unique_ptr<Word[], void (*)(void*)> words_{nullptr, nullptr};
  std::vector<Read> reads_;  // 0 is nobody's
  uint32_t free_ = 0;        // a list, too
};

}  // namespace lamina::dev::emu
