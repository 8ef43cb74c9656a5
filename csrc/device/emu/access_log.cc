#include "device/emu/access_log.h"

#include <algorithm>
#include <set>

namespace lamina::dev::emu {
namespace {

constexpr uintptr_t kBanks = 32, kWordBytes = 4;

// The passes over the banks that serve all words: the number of different words in the fullest bank.
int64_t wavefronts(const std::set<uintptr_t>& words) {
  std::array<int64_t, kBanks> in_bank{};
  for (uintptr_t word : words) ++in_bank[word % kBanks];
  return std::max<int64_t>(1, *std::max_element(in_bank.begin(), in_bank.end()));
}

void add_words(std::set<uintptr_t>& words, uintptr_t at, int bytes) {
  for (uintptr_t word = at / kWordBytes; word * kWordBytes < at + static_cast<uintptr_t>(bytes);
       ++word)
    words.insert(word);
}

}  // namespace

AccessLog::Key AccessLog::key_of(const char* name, Where where) {
  return {where.file_name(), where.line(), name};
}

void AccessLog::note(const Warp* warp, int lane, const void* at, int bytes, const char* name,
                     Where where) {
  const Key key = key_of(name, where);
  std::vector<Instruction>& open = open_[{warp, key}];
  const uint32_t bit = 1u << lane;
  auto mine = std::find_if(open.begin(), open.end(),
                           [&](const Instruction& other) { return !(other.lanes & bit); });
  if (mine == open.end()) mine = open.insert(open.end(), Instruction{});
  mine->lanes |= bit;
  mine->bytes = bytes;
  mine->at[static_cast<size_t>(lane)] = reinterpret_cast<uintptr_t>(at);
  if (mine->lanes == kFullWarp) {
    count(key, *mine);
    open.erase(mine);
  }
}

void AccessLog::count(const Key& key, const Instruction& instruction) {
  Site& site = sites_[key];
  ++site.accesses;
  // One pass serves 32 lanes of up to 4 bytes, 16 lanes of 8 bytes, or 8 lanes of 16 bytes.
  const int together = kWarpLanes / std::max(1, instruction.bytes / 4);
  for (int first = 0; first < kWarpLanes; first += together) {
    std::set<uintptr_t> words;
    for (int lane = first; lane < first + together; ++lane)
      if (instruction.lanes >> lane & 1u)
        add_words(words, instruction.at[static_cast<size_t>(lane)], instruction.bytes);
    if (words.empty()) continue;
    site.wavefronts += wavefronts(words);
    ++site.fewest;
  }
}

void AccessLog::note_rows(const void* const* rows, int count, int bytes, const char* name,
                          Where where) {
  Site& site = sites_[key_of(name, where)];
  std::set<uintptr_t> words;
  for (int row = 0; row < count; ++row)
    add_words(words, reinterpret_cast<uintptr_t>(rows[row]), bytes);
  ++site.accesses;
  ++site.fewest;
  site.wavefronts += wavefronts(words);
}

void AccessLog::end_warp(const Warp* warp) {
  for (auto at = open_.begin(); at != open_.end();) {
    if (at->first.first != warp) {
      ++at;
      continue;
    }
    for (const Instruction& instruction : at->second) count(at->first.second, instruction);
    at = open_.erase(at);
  }
}

std::vector<Site> AccessLog::sites() const {
  std::vector<Site> result;
  for (const auto& [key, counts] : sites_) {
    Site site = counts;
    std::tie(site.file, site.line, site.function) = key;
    result.push_back(site);
  }
  return result;
}

}  // namespace lamina::dev::emu
