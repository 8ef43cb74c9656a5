// Vector clocks, which say whether one access is ordered before another.
//
// An actor is a thread of a cluster, or anything that accesses memory on its own: the copies that an mbarrier counts,
// the wgmmas of a warpgroup, the bulk stores of a thread. Each actor has a time, which advances whenever the actor
// tells others about its accesses. Threads that have met have the same knowledge, so they share one object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace lamina::dev::emu {

// One time for each actor of a cluster: the actor's accesses up to this time are ordered before. Actors past the end
// of the vector have time 0.
using Times = std::vector<uint32_t>;
using SharedTimes = std::shared_ptr<const Times>;

// The same for other clusters, by the number of the cluster's first block. This knowledge comes through global memory.
using OtherTimes = std::map<int64_t, SharedTimes>;
using SharedOtherTimes = std::shared_ptr<const OtherTimes>;

struct View {
  SharedTimes here;
  SharedOtherTimes others;

  void join(const View& other);
  void learn(int actor, uint32_t time);
};

SharedOtherTimes join(const SharedOtherTimes& a, const SharedOtherTimes& b);

// The knowledge of a thread, and its own time.
struct Clock {
  int actor = -1;  // -1: no thread, only a shared view
  int64_t cluster = 0;
  uint32_t now = 1;
  View view;
  SharedOtherTimes fenced;  // the knowledge at the last fence, which a relaxed write passes on
  SharedOtherTimes heard;   // the knowledge from relaxed reads, valid from the next fence on

  bool knows(int other, uint32_t time) const {
    if (other == actor) return true;
    const size_t at = static_cast<size_t>(other);
    return view.here && at < view.here->size() && (*view.here)[at] >= time;
  }
  bool knows_of(int64_t other_cluster, int other, uint32_t time) const;

  // This thread's knowledge, for others to get through global memory. Later accesses of this thread are not in it.
  SharedOtherTimes publish();
  void acquire(const SharedOtherTimes& published);
};

// The union of the knowledge of all actors that have been added.
class Gathering {
 public:
  void add(Clock& thread);  // advances the thread's time
  void add(int actor, uint32_t time);
  View view();  // the union so far
  void clear() { *this = {}; }

 private:
  Times sum_;
  SharedOtherTimes others_;
  SharedTimes last_;  // the last that was added
  SharedTimes view_;  // nullptr if out of date
};

}  // namespace lamina::dev::emu
