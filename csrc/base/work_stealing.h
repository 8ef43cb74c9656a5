// Tasks 0 .. count - 1 shared out to workers: each owns a contiguous range, which it takes from the
// front; when that is empty it takes from the back of the others'. So neighbouring tasks mostly run
// one after the other on one core, which keeps what they share in its cache and can prefetch the
// next, and a core that is slower or busy with something else loses tasks to the others.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace lamina {

class WorkStealing {
 public:
  WorkStealing(int64_t count, int64_t workers) : ranges_(static_cast<size_t>(workers)) {
    const int64_t each = count / workers, longer = count % workers;
    int64_t begin = 0;
    for (int64_t i = 0; i < workers; ++i) {
      Range& range = ranges_[static_cast<size_t>(i)];
      range.begin = begin;
      range.end = begin += each + (i < longer);
    }
  }

  // body(task) for every task that falls to this worker.
  template <class Body>
  void run(int64_t worker, const Body& body) {
    const int64_t workers = static_cast<int64_t>(ranges_.size());
    for (int64_t i = 0; i < workers; ++i) {
      Range& range = ranges_[static_cast<size_t>((worker + i) % workers)];
      for (int64_t task; (task = range.take(i == 0)) >= 0;) body(task);
    }
  }

 private:
  struct alignas(64) Range {  // a cache line each
    std::mutex mutex;
    int64_t begin = 0, end = 0;

    int64_t take(bool front) {  // -1 when there is none
      const std::lock_guard<std::mutex> lock(mutex);
      if (begin == end) return -1;
      return front ? begin++ : --end;
    }
  };

  std::vector<Range> ranges_;
};

}  // namespace lamina
