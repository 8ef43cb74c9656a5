#include "device/emu/clock.h"

#include <algorithm>
#include <utility>

namespace lamina::dev::emu {
namespace {

bool covers(const Times& a, const Times& b) {
  if (a.size() < b.size()) return false;
  for (size_t i = 0; i < b.size(); ++i)
    if (a[i] < b[i]) return false;
  return true;
}

void raise(Times& to, const Times& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

void raise(Times& to, int actor, uint32_t time) {
  const size_t at = static_cast<size_t>(actor);
  if (to.size() <= at) to.resize(at + 1);
  to[at] = std::max(to[at], time);
}

SharedTimes join_times(const SharedTimes& a, const SharedTimes& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  // The lanes of a warp call this one after the other with the same arguments.
  static thread_local struct {
    SharedTimes a, b, result;
  } last;
  if (last.a == a && last.b == b) return last.result;
  SharedTimes result;
  if (covers(*a, *b)) {
    result = a;
  } else if (covers(*b, *a)) {
    result = b;
  } else {
    Times sum = *a;
    raise(sum, *b);
    result = std::make_shared<const Times>(std::move(sum));
  }
  last = {a, b, result};
  return result;
}

}  // namespace

SharedOtherTimes join(const SharedOtherTimes& a, const SharedOtherTimes& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  OtherTimes sum = *a;
  for (const auto& [cluster, times] : *b) {
    SharedTimes& mine = sum[cluster];
    mine = join_times(mine, times);
  }
  return std::make_shared<const OtherTimes>(std::move(sum));
}

void View::join(const View& other) {
  here = join_times(here, other.here);
  others = emu::join(others, other.others);
}

void View::learn(int actor, uint32_t time) {
  Times times = here ? *here : Times();
  raise(times, actor, time);
  here = std::make_shared<const Times>(std::move(times));
}

bool Clock::knows_of(int64_t other_cluster, int other, uint32_t time) const {
  if (other_cluster == cluster) return knows(other, time);
  if (!view.others) return false;
  const auto found = view.others->find(other_cluster);
  const size_t at = static_cast<size_t>(other);
  return found != view.others->end() && at < found->second->size() && (*found->second)[at] >= time;
}

SharedOtherTimes Clock::publish() {
  Times mine = view.here ? *view.here : Times();
  raise(mine, actor, now++);
  OtherTimes all = view.others ? *view.others : OtherTimes();
  all[cluster] = std::make_shared<const Times>(std::move(mine));
  return std::make_shared<const OtherTimes>(std::move(all));
}

void Clock::acquire(const SharedOtherTimes& published) {
  if (!published) return;
  if (const auto mine = published->find(cluster); mine != published->end())
    view.here = join_times(view.here, mine->second);
  view.others = emu::join(view.others, published);
}

void Gathering::add(Clock& thread) {
  if (thread.view.here && thread.view.here != last_) {
    raise(sum_, *thread.view.here);
    last_ = thread.view.here;
  }
  others_ = join(others_, thread.view.others);
  add(thread.actor, thread.now++);
}

void Gathering::add(int actor, uint32_t time) {
  raise(sum_, actor, time);
  view_ = nullptr;
}

View Gathering::view() {
  if (!view_) view_ = std::make_shared<const Times>(sum_);
  return {view_, others_};
}

}  // namespace lamina::dev::emu
