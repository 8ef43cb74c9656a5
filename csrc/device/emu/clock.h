// Vector clocks: which accesses are ordered before which.
//
// An actor is a thread of a cluster, or something that accesses memory on its own: the copies that an
// mbarrier counts, the wgmmas of a warpgroup, the bulk stores of a thread. Each has a time, which passes
// whenever it tells others what it has done. Threads that have met know the same: they share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace lamina::dev::emu {

// By actor of a cluster: everything up to this time is ordered before. Beyond the end nothing is.
using Times = std::vector<uint32_t>;
using SharedTimes = std::shared_ptr<const Times>;

// The same of other clusters, by the number of the cluster's first block: what came by global memory.
using OtherTimes = std::map<int64_t, SharedTimes>;
using SharedOtherTimes = std::shared_ptr<const OtherTimes>;

struct View {
  SharedTimes here;
  SharedOtherTimes others;

  void join(const View& other);
  void learn(int actor, uint32_t time);
};

SharedOtherTimes join(const SharedOtherTimes& a, const SharedOtherTimes& b);

// What a thread knows, and its own time.
struct Clock {
  int actor = -1;  // none: only what all who share the view know
  int64_t cluster = 0;
  uint32_t now = 1;
  View view;
  SharedOtherTimes
      fenced;  // what a relaxed write tells others: all that was known at the last fence
  SharedOtherTimes heard;  // what relaxed reads brought, to be known from the next fence on

  bool knows(int other, uint32_t time) const {
    if (other == actor) return true;
    const size_t at = static_cast<size_t>(other);
    return view.here && at < view.here->size() && (*view.here)[at] >= time;
  }
  bool knows_of(int64_t other_cluster, int other, uint32_t time) const;

  // For others, by global memory; what this thread does from here on is not in it.
  SharedOtherTimes publish();
  void acquire(const SharedOtherTimes& published);
};

// What all who came know together.
class Gathering {
 public:
  void add(Clock& thread);  // its time passes
  void add(int actor, uint32_t time);
  View view();  // of all so far
  void clear() { *this = {}; }

 private:
  Times sum_;
  SharedOtherTimes others_;
  SharedTimes last_;  // that was added
  SharedTimes view_;  // null where it is out of date
};

}  // namespace lamina::dev::emu
