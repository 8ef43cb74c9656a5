// Counts bank conflicts: which words of shared memory the lanes of a warp touch in one instruction.
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
  // The next access of this lane at this place. Lanes come one after the other: the n-th access of each
  // lane of a warp at one place are one instruction.
  void note(const Warp* warp, int lane, const void* at, int bytes, const char* name, Where where);
  void note_rows(const void* const* rows, int count, int bytes, const char* name, Where where);
  void end_warp(const Warp* warp);  // what some lanes did not take part in
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
