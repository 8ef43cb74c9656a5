// Counts bank conflicts from the words of shared memory that the lanes of a warp touch in one instruction.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "device/emu/executor.h"

namespace lamina::dev::emu {

class AccessLog {
 public:
  // Notes the next access of this lane at this place in the code. Lanes run one after the other: the n-th accesses of
  // all lanes of a warp at one place make one instruction.
  void note(const Warp* warp, int lane, const void* at, int bytes, const char* name, Where where);
  void note_rows(const void* const* rows, int count, int bytes, const char* name, Where where);
  void end_warp(const Warp* warp);  // counts the instructions of which some lanes took no part
  void end_launch() { open_.clear(); }
  std::vector<Site> sites() const;

 private:
  using Key = std::tuple<std::string, unsigned, std::string>;  // file, line, function
  struct Instruction {
    uint32_t lanes = 0;
    int bytes = 0;
    std::array<uintptr_t, kWarpLanes> at{};
  };

  static Key key_of(const char* name, Where where);
  void count(const Key& key, const Instruction& instruction);

  std::map<Key, Site> sites_;
  std::map<std::pair<const Warp*, Key>, std::vector<Instruction>> open_;
};

}  // namespace lamina::dev::emu
