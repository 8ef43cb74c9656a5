// The last accesses to a block's shared memory, for each 4-byte word. Finds races (two accesses to a byte, of which
// one writes, with no order between them), reads of bytes that no thread wrote, accesses to the target of a copy in
// flight, and writes that the async proxy would see before a fence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/emu/clock.h"
#include "device/emu/executor.h"

namespace lamina::dev::emu {

// One access, in 16 bytes, because every word has some.
struct Access {
  Where where;
  uint32_t time : 28 = 0;  // the actor's time; 0: no access
  uint32_t bytes : 4 = 0;  // a bit for each byte of the word
  uint16_t actor = 0;
  uint16_t thread = 0;  // the thread of the cluster that made the access or asked for it

  static Access by(const Clock& clock, Where where) {
    return by(clock, clock.actor, clock.now, where);
  }
  // An access by an operation that the clock's thread starts.
  static Access by(const Clock& clock, int actor, uint32_t time, Where where) {
    return {where, time & ((1u << 28) - 1), 0, static_cast<uint16_t>(actor),
            static_cast<uint16_t>(clock.actor < 0 ? 0 : clock.actor)};
  }
};

// Calls visit(number of a word, mask of its bytes) for each word of [begin, begin + bytes) until visit returns false.
void for_words(uintptr_t begin, int bytes, const auto& visit) {
  for (uintptr_t at = begin, end = begin + static_cast<uintptr_t>(bytes); at < end;) {
    const uintptr_t next = std::min(end, at / 4 * 4 + 4);
    if (!visit(at / 4, ((1u << (next - at)) - 1) << at % 4)) return;
    at = next;
  }
}

// The errors of an access.
enum class Trouble : uint8_t {
  kNone,
  kWrite,      // races with a write
  kRead,       // races with a read
  kInFlight,   // touches the target of a copy in flight
  kUnwritten,  // reads bytes that no thread has written
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

  // by: the access to remember; viewer: the knowledge at the time of the access.
  SharedTrouble read(const Clock& viewer, const Access& by, int offset, int bytes);
  SharedTrouble write(const Clock& viewer, const Access& by, int offset, int bytes, uint32_t fences,
                      bool starts_copy = false);
  // Calls visit(last write) for each word that has been written.
  void for_writes(int offset, int bytes, const auto& visit) const {
    for (int at = offset / 4; 4 * at < offset + bytes; ++at)
      if (words_[static_cast<size_t>(at)].write.time) visit(words_[static_cast<size_t>(at)].write);
  }
  // Like read(), but does not count as a read.
  SharedTrouble look(const Clock& viewer, int offset, int bytes) const;
  // Ends the copy that write() started.
  void deliver(int actor, uint32_t time, int offset, int bytes, uint32_t fences);

  // The first byte that a thread below `threads` wrote last and for which is_fenced(thread, fences) is false; offset
  // -1 if there is none. Writes of other actors need no fence.
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
    uint32_t fences;             // fences of the writing thread before the write
    uint32_t more_reads;         // a list of reads
    uint8_t written, in_flight;  // masks of bytes
    uint16_t pushes_left;        // pushes to the list before it is searched
  };

  SharedTrouble find_write(const Word& word, const Clock& viewer, uint32_t bytes) const;
  void note_read(Word& word, const Clock& viewer, const Access& by);

  // Lists of reads, for words with several readers, without an allocation for each read.
  struct Read {
    Access access;
    uint32_t next;  // 0: none
  };
  void push(uint32_t& list, const Access& access);
  int erase_if(uint32_t& list, const auto& is_to_go);  // returns the number of reads left

  // calloc makes the zeros, because most blocks touch little of their memory.
  std::unique_ptr<Word[], void (*)(void*)> words_{nullptr, nullptr};
  std::vector<Read> reads_;  // index 0 is not used
  uint32_t free_ = 0;        // the list of free reads
};

}  // namespace lamina::dev::emu
